"""bard download: a configuration's raw shards to the cache that prepare reads, a model or a data set to a folder."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bard_core.data.sources import s3_client

from ..hub import BODY, COMMIT, CONFIG

LAB = Path(__file__).resolve().parents[3] / "configs" / "lab.yaml"


def test_a_model_to_a_folder_and_a_data_set_to_s3(bard, bard_home, hub, s3_root, tmp_path):
    told = json.loads(bard("download", "o/open", "--revision", "v1", "-o", tmp_path / "model", "--json"))
    assert told["commit"] == COMMIT and told["files"] == 2 and (tmp_path / "model" / "config.json").read_bytes() == CONFIG
    said = bard("download", "hf://datasets/o/open", "-o", f"{s3_root}/raw", "--include", "sub")
    assert said == f"{s3_root}/raw: 1 files, {len(BODY):,} bytes, 1 of them brought now; commit {COMMIT}\n"
    assert "1 of 1 files" in bard.err
    bard("download", "o/gated", "-o", tmp_path / "gated", expect=1)
    assert "set HF_TOKEN" in bard.err
    bard("download", "o/open", expect=2)
    assert "--output is missing" in bard.err
    bard("download", "o/open", "--data.seed", "1", expect=2)
    assert "o/open is none" in bard.err


def test_what_was_downloaded_is_what_prepare_reads(bard, bard_home, s3_root, tmp_path):
    """Downloaded once by either verb, the raw data may then vanish."""
    rows = [{"texts": [{"user": f"Q{number}", "assistant": "A"}]} for number in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    bucket = s3_root.removeprefix("s3://")
    s3_client().put_object(Bucket=bucket, Key="raw/0.parquet", Body=(tmp_path / "0.parquet").read_bytes())
    source = json.dumps([{"name": "raw", "schema_name": "finevision", "uri": f"{s3_root}/raw"}])
    config = (LAB, "--data.lab", "null", "--data.sources", source)
    (told,) = json.loads(bard("download", *config, "--json"))["sources"]
    assert told == {
        "name": "raw",
        "uri": f"{s3_root}/raw",
        "commit": None,
        "shards": 1,
        "bytes": (tmp_path / "0.parquet").stat().st_size,
    }
    assert bard("prepare", *config, "--download-only") == f"raw: 1 shards, {told['bytes']:,} bytes\n"
    bard("download", *config, "-o", tmp_path / "x", expect=2)
    assert "a configuration says its own" in bard.err
    (cached,) = (bard_home / "raw").glob("*.parquet")
    cached.write_bytes(cached.read_bytes()[:-4] + b"torn")  # so that it shows from where prepare reads
    bard("prepare", *config, "-o", tmp_path / "data", expect=1)
    assert "1 of 1 shards were refused" in bard.err
    cached.unlink()
    bard("prepare", *config, "-o", tmp_path / "data", "--json")
    bard("prepare", *config, expect=2)
    assert "--output is missing" in bard.err
