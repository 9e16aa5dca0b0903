"""The 4B configuration rehearsed on CPUs: everything of a stage but its model, which is replaced by one of two layers.

    make bench-rehearsal                      # a million rows, 4 workers over gloo, 30 steps, one worker killed at the 15th
    python benchmarks/rehearsal.py --rows 10000 --samples 2 --row-tokens 2048 --steps 6    # in a minute

A worker has as many samples a step as each of the configuration's GPUs. Reading, rows, noise, sharding, checkpoints, kill and
resume are a stage's own. Told are, of every worker: the share of time it waited for data; memory; what a step takes besides the
model's own forward, backward and optimizer step, as a share of that step on an H100 (planned, at 35 % of its peak); and, of all
together, the balance of their tokens. Written to ``results/rehearsal-<machine>.json``.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _machine import write
from _reading import write_dataset

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "bard_4b.yaml"
GOAL = 0.05
VOCABULARY, MASK, END = 1100, 1090, 1091


def worker(folder: Path, rank: int, world: int, arguments: argparse.Namespace) -> None:
    """One rank: trains to the end and leaves its numbers in ``folder``."""
    import torch.distributed as dist
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from bard_core.config.sections.compute import CheckpointConfig
    from bard_core.config.sections.noise import NoiseConfig
    from bard_core.config.sections.train import OptimizerConfig, TrainConfig
    from bard_core.data.batches import BatchSpec
    from bard_core.data.examples import Positions
    from bard_core.data.feed import MicroBatches, Walk
    from bard_core.data.fit import Fitted
    from bard_core.data.reader import Reader
    from bard_core.training import loop
    from bard_core.training.checkpoints.writer import Run
    from bard_core.training.interrupts import Interrupts
    from bard_core.training.objectives import ProgressiveBlockMerging
    from bard_core.training.parallel import shard

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{arguments.attempt}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=32, max_position_embeddings=32768,
        )
    )  # fmt: skip
    noise, device = NoiseConfig(), torch.device("cpu")
    opened = time.perf_counter()
    fitted = Fitted(Reader(str(folder / "dataset"), "train"), 4, 1, arguments.row_tokens, 1050, 2)
    open_s = time.perf_counter() - opened
    spec = BatchSpec(4, noise, MASK, END, 0, torch.arange(1, 1000), max_tokens_per_row=arguments.row_tokens)
    config = TrainConfig(
        steps=arguments.steps, batch_size=world * arguments.samples, max_tokens_per_row=arguments.row_tokens, precision="float32",
        optimizer=OptimizerConfig(warmup_steps=2), checkpoint_every=max(1, arguments.steps // 3), log_every=1,
    )  # fmt: skip
    data = MicroBatches(Walk(fitted, 0, Positions(model.config)), spec, config.batch_size, 1, rank, world, None, config.steps)
    objective = ProgressiveBlockMerging(model, "block", "mask", 0.0)
    shard(objective, model, config.precision, device, False)
    steps: list[float] = []
    stock = loop.train_step

    def timed(*given: Any, **more: Any) -> Any:
        started = time.perf_counter()
        done = stock(*given, **more)
        steps.append(time.perf_counter() - started)
        tokens.append(sum(batch.input_ids_BL.numel() for batch in given[2]))
        return done

    tokens: list[int] = []
    loop.train_step = timed
    records: list[dict[str, Any]] = []
    run = Run(str(folder / "run"), {"config": "rehearsal"}, CheckpointConfig())
    began = time.perf_counter()

    def note(record: dict[str, Any]) -> None:
        records.append(record)
        (folder / "reached").write_text(str(record["step"]))

    interrupts = Interrupts(run.uri)
    loop.train(objective, data, lambda *_: None, config, run, device, note, interrupts, arguments.data_workers)  # type: ignore[arg-type]
    interrupts.close()
    whole_s = time.perf_counter() - began
    body = {
        "steps": len(steps),
        "open_dataset_s": open_s,
        "seconds_a_step": whole_s / len(steps),
        "model_seconds_a_step": sum(steps) / len(steps),
        "overhead_s": (whole_s - sum(steps)) / len(steps),
        "data_wait": sum(record["data_wait"] for record in records) / max(1, len(records)),
        "checkpoint_blocked_s": records[-1]["checkpoint_blocked_s"] if records else None,
        "peak_memory_gib": loop.peak_memory_gib(device),
        "tokens": tokens,
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(body))
    dist.destroy_process_group()


def start(folder: Path, world: int, options: list[str], attempt: int) -> list[subprocess.Popen[bytes]]:
    return [
        subprocess.Popen([sys.executable, __file__, *options, "--rank", str(rank), str(folder), "--attempt", str(attempt)])
        for rank in range(world)
    ]


def h100_step_s() -> tuple[float, int]:
    """Seconds that the configuration's first stage is planned to take a step, and samples of a GPU."""
    from bard_core import plan
    from bard_core.config.faults import read_config

    config = read_config(CONFIG)
    stage = config.pbm.stages[0]
    planned = plan.plan(config, plan.Assumptions(tokens_per_sample=2048)).stages[0]
    gpus = config.compute.most_workers
    return 3600 * planned.gpu_hours / planned.steps / gpus, stage.train.batch_size // gpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the dataset")
    parser.add_argument("--samples", type=int, default=0, help="a worker and step; 0: the configuration's of a GPU")
    parser.add_argument("--row-tokens", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--data-workers", type=int, default=0, help="loader processes a worker")
    parser.add_argument("--rank", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--attempt", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        worker(Path(arguments.rank[1]), int(arguments.rank[0]), arguments.workers, arguments)
        return
    step_s, samples = h100_step_s()
    samples = arguments.samples or samples
    given = {"--samples": samples, "--row-tokens": arguments.row_tokens, "--steps": arguments.steps}
    given |= {"--workers": arguments.workers, "--data-workers": arguments.data_workers}
    options = [str(word) for pair in given.items() for word in pair]
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch:
        folder = Path(scratch)
        os.environ["BARD_HOME"] = str(folder / "home")
        write_dataset(folder, arguments.rows)
        killed_at = kill_in_the_middle(folder, start(folder, arguments.workers, options, 0), arguments.steps // 2)
        resumed = time.perf_counter()
        processes = start(folder, arguments.workers, options, 1)
        if any(process.wait() for process in processes):
            raise SystemExit("a worker failed; see above")
        ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(arguments.workers)]
        by_step = list(zip(*(rank.pop("tokens") for rank in ranks), strict=True))
    overhead_s = max(rank["overhead_s"] for rank in ranks)
    body = {
        "rows": arguments.rows,
        "samples_a_worker": samples,
        "row_tokens": arguments.row_tokens,
        "killed_at_step": killed_at,
        "resumed_at_step": arguments.steps - ranks[0]["steps"],
        "seconds_after_resume": time.perf_counter() - resumed,
        "balance": sum(map(sum, by_step)) / sum(arguments.workers * max(step) for step in by_step),
        "h100_step_s": step_s,
        "overhead_s": overhead_s,
        "overhead_of_h100_step": overhead_s / step_s,
        "goal": GOAL,
        "workers": ranks,
    }
    print(json.dumps(body, indent=2))
    print(write("rehearsal", body))


def kill_in_the_middle(folder: Path, processes: list[subprocess.Popen[bytes]], step: int) -> int:
    """SIGKILL one worker once the run is past ``step``; the others lose their peer and end too. Returns the step reached."""
    reached = folder / "reached"
    while not reached.is_file() or int(reached.read_text() or 0) <= step:
        if any(process.poll() is not None for process in processes):
            raise SystemExit("a worker ended before it was killed; see above")
        time.sleep(0.05)
    at = int(reached.read_text() or 0)
    processes[-1].send_signal(signal.SIGKILL)
    for process in processes:
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return at


if __name__ == "__main__":
    main()
