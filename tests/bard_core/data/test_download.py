"""Raw bytes from S3 and from a hub, over real servers on loopback that fail in every way: retried, or refused by name."""

import hashlib
import http.server
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bard_core.config.sources import RawSource
from bard_core.data import download as downloading
from bard_core.data import sources
from bard_core.data.download import brought, cached, download
from bard_core.data.sources import SourceError, list_shards, s3_client

from ..hub import BODY, COMMIT, Hub, flipped

PATIENCE_S = 0.3
Fault = Callable[["Proxy"], bool]


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes everything on to a server; ``faults`` may spoil an answer, each once, the first first."""

    target = ""
    faults: ClassVar[list[Fault]] = []
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.faults and "list-type" not in self.path:
            fault = self.faults.pop(0)  # before it runs: a stalled answer is asked for again meanwhile
            if fault(self):
                return
            self.faults.insert(0, fault)
        self.pass_on()

    def fetched(self) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        request = urllib.request.Request(self.target + self.path, headers=headers)
        try:
            answer = urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            answer = error  # type: ignore[assignment]
        kept = {n: v for n, v in answer.headers.items() if n.lower() not in ("connection", "transfer-encoding", "content-length")}
        return answer.status, kept, answer.read()

    def pass_on(self, spoil: Callable[[bytes], bytes] = lambda body: body, cut: bool = False) -> bool:
        status, headers, body = self.fetched()
        sent = spoil(body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(sent)
        self.close_connection = cut or len(sent) != len(body)
        return True

    def fail(self, status: int, code: str) -> bool:
        body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return True


def stalled(proxy: "Proxy") -> bool:
    """Half of the body, then nothing for longer than anybody waits."""
    status, headers, body = proxy.fetched()
    proxy.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        proxy.send_header(name, value)
    proxy.end_headers()
    proxy.wfile.write(body[: len(body) // 2])
    proxy.wfile.flush()
    time.sleep(3 * PATIENCE_S)
    proxy.close_connection = True
    return True


FAULTS: dict[str, Fault] = {
    "stalled": stalled,
    "torn": lambda proxy: proxy.pass_on(lambda body: body[: len(body) // 2]),
    "flipped": lambda proxy: proxy.pass_on(flipped),
    "busy": lambda proxy: proxy.fail(503, "SlowDown"),
}


@pytest.fixture
def ledger(faults: Any) -> Any:
    return faults


@pytest.fixture
def faulty_s3(s3_root: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[Fault]]]:
    """A bucket with two shards behind a proxy, and the faults that the proxy is to commit."""
    for name in ("a", "b"):
        s3_client().put_object(Bucket=s3_root.removeprefix("s3://"), Key=f"raw/{name}.parquet", Body=BODY + name.encode())
    s3_client().put_object(Bucket=s3_root.removeprefix("s3://"), Key="raw-neighbour/c.parquet", Body=BODY)
    handler = type("Handler", (Proxy,), {"target": s3_server, "faults": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(downloading, "PAUSE_S", 0.01)
    monkeypatch.setattr(sources, "READ_TIMEOUT_S", PATIENCE_S)
    yield s3_root, handler.faults  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def source(uri: str, **options: Any) -> RawSource:
    return RawSource(name="raw", schema_name="finevision", uri=uri, **options)


def test_a_prefix_is_listed_without_its_neighbours_and_read_whole(faulty_s3: tuple[str, list[Fault]], bard_home: Path) -> None:
    root, _ = faulty_s3
    shards = list_shards(source(f"{root}/raw"))
    assert [(shard.name, shard.size) for shard in shards] == [("a", len(BODY) + 1), ("b", len(BODY) + 1)]
    assert [shard.name for shard in list_shards(source(f"{root}/raw/{{b,c}}.parquet"))] == ["b"]
    with brought(shards[0]) as path:
        assert path.read_bytes() == BODY + b"a"
    assert not path.exists() and not cached(shards[0]).exists()  # a run that is not told to keep raw data keeps none


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("times", [1, 3])
def test_what_a_retry_mends_is_retried(
    faulty_s3: tuple[str, list[Fault]], bard_home: Path, ledger: Any, fault: str, times: int
) -> None:
    root, faults = faulty_s3
    shard = list_shards(source(f"{root}/raw"))[0]
    faults += [FAULTS[fault]] * times
    with brought(shard) as path:
        assert path.read_bytes() == BODY + b"a"
    assert not faults
    ledger.survived(f"raw data from S3: {fault}", "brought again, byte for byte", times=times)


@pytest.mark.parametrize("fault", ["torn", "flipped"])
def test_bytes_that_stay_wrong_are_never_taken_for_right(faulty_s3: tuple[str, list[Fault]], bard_home: Path, fault: str) -> None:
    root, faults = faulty_s3
    shard = list_shards(source(f"{root}/raw"))[0]
    faults += [FAULTS[fault]] * 100
    with pytest.raises(SourceError, match=r"'raw': cannot read .*raw/a.parquet .*tried 5 times"), brought(shard):
        pass


def test_credentials_that_ran_out_are_said_at_once(faulty_s3: tuple[str, list[Fault]], bard_home: Path) -> None:
    root, faults = faulty_s3
    shard = list_shards(source(f"{root}/raw"))[0]
    faults += [lambda proxy: proxy.fail(400, "ExpiredToken")] * 100
    with pytest.raises(SourceError, match=r"ExpiredToken.*check the credentials"), brought(shard):
        pass
    assert len(faults) == 99


def test_a_download_goes_on_where_it_was_stopped(faulty_s3: tuple[str, list[Fault]], bard_home: Path) -> None:
    root, faults = faulty_s3
    shards = list_shards(source(f"{root}/raw"))
    never = [lambda proxy: proxy.fail(403, "AccessDenied")]
    faults += [lambda proxy: (proxy.path.endswith("b.parquet") and never[0](proxy)) or proxy.pass_on()] * 2
    with pytest.raises(SourceError, match=r"b\.parquet"):
        download(source(f"{root}/raw"))
    stamp = cached(shards[0]).stat().st_mtime_ns
    faults.clear()
    assert [path.read_bytes() for path in download(source(f"{root}/raw"))] == [BODY + b"a", BODY + b"b"]
    assert cached(shards[0]).stat().st_mtime_ns == stamp
    faults += never * 9
    with brought(shards[0]) as path:  # from the cache
        assert path == cached(shards[0])


def test_a_hub_revision_is_a_commit_and_its_bytes_are_those_it_lists(hub: type[Hub], bard_home: Path) -> None:
    (shard,) = list_shards(source("hf://datasets/o/open", revision="v1"))
    assert (shard.revision, shard.name, shard.sha256) == (COMMIT, "sub/a", hashlib.sha256(BODY).hexdigest())
    assert list_shards(source("hf://datasets/o/open/sub", revision="v1"))[0].name == "a"
    hub.spoiled = 2
    with brought(shard) as path:
        assert path.read_bytes() == BODY and hub.spoiled == 0


def test_bytes_that_are_not_the_hubs_are_refused(hub: type[Hub], bard_home: Path) -> None:
    (shard,) = list_shards(source("hf://datasets/o/open", revision="v1"))
    hub.spoiled = 1000
    with pytest.raises(SourceError, match="tried 5 times"), brought(shard):
        pass


def test_unknown_revisions_and_gated_datasets_say_what_to_do(
    hub: type[Hub], bard_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceError, match=r"(?s)at revision v2 .*check name and revision"):
        list_shards(source("hf://datasets/o/open", revision="v2"))
    with pytest.raises(SourceError, match=r"(?s)accept the dataset's terms on its page, and set HF_TOKEN"):
        list_shards(source("hf://datasets/o/gated", revision="v1"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert list_shards(source("hf://datasets/o/gated", revision="v1"))[0].name == "sub/a"
