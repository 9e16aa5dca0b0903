"""A stand-in of the hub's API on loopback: repositories of two files at one commit, an open one and a gated one; and commits."""

import base64
import hashlib
import http.server
import json
from typing import ClassVar

BODY = bytes(range(256)) * 400
CONFIG = b'{"model_type": "qwen3_vl"}'


def flipped(body: bytes) -> bytes:
    return body[:1000] + bytes([body[1000] ^ 4]) + body[1001:]


COMMIT = "c" * 40
LARGE, SMALL = "sub/a.parquet", "config.json"


class Hub(http.server.BaseHTTPRequestHandler):
    """Data sets and models alike, by their last name: ``o/open`` for everybody; ``o/gated`` wants a token.

    ``spoiled``: so many answers have a flipped bit. ``torn``: so many end in the middle. ``asked``: the paths.
    ``committed``: the files of commits to ``o/new``, which wants a token.
    """

    spoiled = torn = 0
    asked: ClassVar[list[str]] = []
    committed: ClassVar[dict[str, bytes]] = {}
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes, head: bool, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET(head=True)

    def do_GET(self, head: bool = False) -> None:
        type(self).asked.append(self.path)
        path = self.path.split("?")[0]
        if "/gated" in path and self.headers.get("Authorization") != "Bearer secret":
            return self.answer(403, b"{}", head, X_Error_Code="GatedRepo", X_Error_Message="Access to dataset is restricted")
        if path.endswith((f"/revision/{COMMIT}", "/revision/v1", "/open", "/gated")):
            return self.answer(200, json.dumps({"id": "o/open", "sha": COMMIT, "siblings": []}).encode(), head)
        if "/revision/" in path:
            return self.answer(404, b"{}", head, X_Error_Code="RevisionNotFound")
        if f"/tree/{COMMIT}" in path:
            return self.answer(200, json.dumps(self.entries(path.partition(f"/tree/{COMMIT}")[2].strip("/"))).encode(), head)
        if path.endswith(f"/resolve/{COMMIT}/{LARGE}"):
            return self.large(head)
        if path.endswith(f"/resolve/{COMMIT}/{SMALL}"):
            return self.answer(200, CONFIG, head, ETag=f'"{blob(CONFIG)}"', X_Repo_Commit=COMMIT)
        return self.answer(404, b"{}", head)

    def do_POST(self) -> None:
        """What a commit asks: the repository, its card's metadata, how files are sent, the files themselves."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer secret":
            return self.answer(401, b'{"error": "Invalid username or password."}', False)
        told: dict[str, object] = {
            "url": f"http://{self.headers['Host']}/o/new",
            "commitUrl": "/o/new/commit/1",
            "commitOid": COMMIT,
        }
        if "/preupload/" in self.path:
            given = json.loads(body)["files"]
            told["files"] = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in given]
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            type(self).committed |= {file["path"]: base64.b64decode(file["content"]) for file in files}
        self.answer(200, json.dumps(told).encode(), False)

    def entries(self, folder: str) -> list[dict[str, object]]:
        lfs = {"oid": hashlib.sha256(BODY).hexdigest(), "size": len(BODY), "pointerSize": 1}
        large = {"type": "file", "path": LARGE, "size": len(BODY), "oid": "1" * 40, "lfs": lfs}
        small = {"type": "file", "path": SMALL, "size": len(CONFIG), "oid": blob(CONFIG)}
        return [entry for entry in (large, small) if str(entry["path"]).startswith(folder)]

    def large(self, head: bool) -> None:
        tag, body, cut = hashlib.sha256(BODY).hexdigest(), BODY, not head and self.torn > 0
        if not head and self.spoiled:
            type(self).spoiled -= 1
            body = flipped(BODY)
        about = {"ETag": f'"{tag}"', "X_Repo_Commit": COMMIT, "X_Linked_Size": str(len(BODY)), "X_Linked_Etag": f'"{tag}"'}
        self.answer(200, body, head or cut, **about)
        if cut:
            type(self).torn -= 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True


def blob(data: bytes) -> str:
    """Git's name of a file."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
