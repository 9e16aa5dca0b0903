"""The leaderboard over 200 checkpoints and 8 benchmarks on sqlite: how long until it is there.

    make bench-leaderboard

Measured: reading the store, building our page and writing it ("opens"), and the search that MLflow's Models tab does: the median
of several, beside the same for 20 checkpoints. The processor's time is given too; neighbours on a shared machine lengthen the
clock's.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _machine import write as write_result

BENCHMARKS = ("mmmu_val", "mmmu_pro_standard", "mme", "realworldqa", "mmstar", "ai2d", "chartqa", "docvqa_val")
REPEATS = 7
TARGET_S = 2.0


def fill(config: Any, checkpoints: int) -> None:
    """Invented checkpoints with scores, logged as the pipeline logs them."""
    from bard_core import tracking
    from bard_core.store.refs import BenchmarkScore, EvalResult, ModelRef

    with tracking.stage_run(config, None, "evaluate", "evaluate", {}) as run:
        for index in range(checkpoints):
            accuracy = 0.4 + 0.5 * ((index * 37) % 101) / 101
            scores = tuple(
                BenchmarkScore(
                    name=name, task=name, task_version="0", prompt="default", metrics={"acc": accuracy}, accuracy=accuracy,
                    accuracy_stderr=0.01, num_samples=900, crashed=0, real_tokens=3, forwards=1, dataset_fingerprint="f" * 64,
                )
                for name in BENCHMARKS
            )  # fmt: skip
            model = ModelRef(uri=f"m{index}", manifest_sha256=f"{index:064x}", stage="pbm", block_size=4, parent_sha256=None)
            result = EvalResult(
                uri=f"e{index}", manifest_sha256=f"{index:064x}", model=model, suite="paper", suite_digest="d" * 64,
                benchmarks=scores, accuracy=accuracy, accuracy_stderr=0.01, num_samples=7200, tokens_per_forward=3.0,
                tokens_per_s=100.0, ar_tokens_per_s=40.0, speedup=1.0 + (index * 53) % 97 / 30, seconds=1.0,
            )  # fmt: skip
            tracking.log_evaluation(config, run, result, "p" * 64)


def timed(action: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of the clock and of the processor, after one warm-up."""
    action()
    runs = []
    for _ in range(REPEATS):
        clock, processor = time.perf_counter(), time.process_time()
        action()
        runs.append((time.perf_counter() - clock, time.process_time() - processor))
    return {
        "wall_s": statistics.median(wall for wall, _ in runs),
        "fastest_s": min(wall for wall, _ in runs),
        "cpu_s": statistics.median(cpu for _, cpu in runs),
    }


def measure(folder: Path, checkpoints: int) -> dict[str, Any]:
    from bard_core import tracking
    from bard_core.config.sections.storage import TrackingConfig
    from bard_core.report import leaderboard

    config = TrackingConfig(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", experiment=f"of-{checkpoints}")
    fill(config, checkpoints)
    client, experiment = tracking.client_of(config)
    return {
        "checkpoints": checkpoints,
        "benchmarks": len(BENCHMARKS),
        "opens": timed(lambda: leaderboard.write_page(config, folder)),
        "models_tab_search": timed(lambda: client.search_logged_models([experiment], max_results=50)),
        "page_bytes": leaderboard.write_page(config, folder).stat().st_size,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        rows = [measure(Path(scratch), checkpoints) for checkpoints in (20, 200)]
    opens = rows[-1]["opens"]
    body = {
        "what": "seconds until the leaderboard page is read from sqlite and written",
        "target_s": TARGET_S,
        "rows": rows,
        "ratio_200_to_20": opens["cpu_s"] / rows[0]["opens"]["cpu_s"],
        "met": opens["cpu_s"] < TARGET_S,
    }
    path = write_result("leaderboard", body)
    print(f"200 checkpoints x 8 benchmarks: {opens['cpu_s']:.2f} s of processor, {opens['wall_s']:.2f} s; {path.name}")


if __name__ == "__main__":
    main()
