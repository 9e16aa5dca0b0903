"""Peak memory and speed of consolidation on a random checkpoint of more than 2 GB: make bench-consolidate

The alternative is what most scripts do: load the whole state, then ``save_pretrained``-like one file. Each runs in a process of
its own, whose peak resident memory is compared with the same process's before it began.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from _machine import write

from bard_core.models.qwen3_vl import architecture
from bard_core.store import artifacts

SHARD_BYTES = 512 * 2**20


def small_architecture() -> "object":
    """Qwen3-VL-2B with a quarter of the layers: over 2 GB in fp32, tied head, every kind of tensor."""
    config = architecture("Qwen/Qwen3-VL-2B-Instruct")
    config.text_config.num_hidden_layers = 6
    config.text_config.vocab_size = 75968
    config.vision_config.depth = 18
    return config


def make(folder: Path) -> None:
    """A source folder and a committed checkpoint of random weights with their AdamW moments left out."""
    import torch.distributed.checkpoint as dcp
    from transformers import Qwen3VLForConditionalGeneration

    config = small_architecture()
    (folder / "source").mkdir()
    config.save_pretrained(folder / "source")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Qwen3VLForConditionalGeneration(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.empty(shape).normal_(generator=generator) for name, shape in shapes.items()}
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    dcp.save({"model": state}, checkpoint_id=str(folder / "staging"), no_dist=True)
    artifacts.commit_directory(folder / "staging", str(folder / "step-000001"), kind="checkpoint", step=1)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ours(folder: Path, output: Path) -> None:
    from bard_core.training.checkpoints.consolidate import consolidate

    consolidate(folder / "step-000001", output, folder / "source", max_shard_bytes=SHARD_BYTES, dtype=torch.bfloat16)


def whole(folder: Path, output: Path) -> None:
    from safetensors.torch import save_file

    from bard_core.training.checkpoints import dcp

    stored = dcp.SafeReader(str(folder / "step-000001")).read_metadata().state_dict_metadata
    state = {name: torch.empty(meta.size, dtype=meta.properties.dtype) for name, meta in stored.items()}
    dcp.load(state, folder / "step-000001", no_dist=True)
    output.mkdir()
    save_file({name: tensor.bfloat16() for name, tensor in state.items() if "lm_head" not in name}, output / "model.safetensors")


def measure(way: str, folder: Path) -> None:
    """In a process of its own: print the numbers as JSON."""
    from bard_core.training.checkpoints.consolidate import _architecture

    torch.set_num_threads(1)
    _architecture(folder / "source")  # imports the model's code, whose memory does not grow with the checkpoint
    output = folder / f"out-{way}"
    before, started = peak_bytes(), time.perf_counter()
    {"ours": ours, "whole": whole}[way](folder, output)
    seconds = time.perf_counter() - started
    sizes = [path.stat().st_size for path in output.glob("*.safetensors")]
    print(json.dumps({
        "peak_over_start_bytes": peak_bytes() - before,
        "largest_output_shard_bytes": max(sizes),
        "peak_in_largest_shards": round((peak_bytes() - before) / max(sizes), 3),
        "output_bytes": sum(sizes),
        "seconds": round(seconds, 1),
    }))  # fmt: skip


def main() -> None:
    if len(sys.argv) > 1:
        measure(sys.argv[1], Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch)
        if not os.fork():  # the weights live and die in a process of their own
            make(folder)
            os._exit(0)
        if os.wait()[1]:
            raise SystemExit("the checkpoint could not be made")
        size = sum(path.stat().st_size for path in (folder / "step-000001").glob("*.distcp"))
        results = {}
        for way in ("ours", "whole"):
            done = subprocess.run([sys.executable, __file__, way, scratch], check=True, capture_output=True, text=True)
            results[way] = json.loads(done.stdout.splitlines()[-1])
            shutil.rmtree(folder / f"out-{way}")
        body = {"checkpoint_bytes": size, "max_shard_bytes": SHARD_BYTES, "dtype": "float32 to bfloat16", **results}
        print(json.dumps(body, indent=2))
        write("consolidate", body)


if __name__ == "__main__":
    main()
