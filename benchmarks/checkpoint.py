"""What checkpoints cost training, and how long a restart takes: make bench-checkpoint

One model of AdamW-trained linear layers stands for any: a checkpoint's cost depends on its bytes and on the length of a step. The
same steps run without checkpoints, with one written behind training, and with one that is waited for, in turns, in one process.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from _machine import write
from torch import nn

from bard_core.training.checkpoints.writer import Run, Writer, latest_complete, restore

WIDTH, LAYERS, ROWS = 1024, 12, 128
STEPS, EVERY, ROUNDS = 40, 20, 3


class Held(nn.Module):
    """Holds the model as objectives do."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


def steps(objective: Held, optimizer: torch.optim.Optimizer, writer: Writer | None, wait: bool) -> float:
    """Seconds of ``STEPS`` steps, and of what was still being written at their end."""
    started = time.perf_counter()
    for step in range(1, STEPS + 1):
        objective.model(torch.randn(ROWS, WIDTH)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if writer is not None and step % EVERY == 0:
            writer.save(step)
            if wait:
                writer._settle()
    return time.perf_counter() - started


def main() -> None:
    torch.set_num_threads(1)
    objective = Held()
    optimizer = torch.optim.AdamW(objective.parameters())
    steps(objective, optimizer, None, False)
    seconds: dict[str, list[float]] = {"none": [], "behind training": [], "waited for": []}
    blocked, written, restart = [], [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        for turn in range(ROUNDS):
            for way in seconds:
                run = Run(str(Path(scratch) / f"{turn}-{way.split()[0]}"), {})
                writer = None if way == "none" else Writer(run, objective, optimizer)
                seconds[way].append(steps(objective, optimizer, writer, way == "waited for"))
                if writer is not None:
                    during = writer.blocked_s
                    writer.close()
                    if way == "behind training":
                        blocked.append(during / (STEPS // EVERY))
                        written.append(writer.write_s)
            started = time.perf_counter()
            found = latest_complete(run)
            assert found is not None
            restore(found, objective, optimizer)
            restart.append(time.perf_counter() - started)
            size = sum(path.stat().st_size for path in Path(found).iterdir())
    base = statistics.median(seconds["none"])
    body = {
        "checkpoint_bytes": size,
        "steps_between_checkpoints": EVERY,
        "seconds_without": round(base, 3),
        "overhead_behind_training": round(statistics.median(seconds["behind training"]) / base - 1, 4),
        "overhead_waited_for": round(statistics.median(seconds["waited for"]) / base - 1, 4),
        "blocked_s_a_checkpoint": round(statistics.median(blocked), 4),
        "written_behind_s": round(statistics.median(written), 4),
        "restart_s": round(statistics.median(restart), 4),
        "rounds": ROUNDS,
    }
    print(json.dumps(body, indent=2))
    write("checkpoint", body)


if __name__ == "__main__":
    main()
