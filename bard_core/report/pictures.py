"""The pictures of a report and of the leaderboard, as PNG bytes: accuracy over speed, and training curves."""

import io
from collections.abc import Sequence
from typing import Any


def _figure(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(panels, figsize=(width, height * panels), layout="constrained")


def _png(figure: Any) -> bytes:
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()


def frontier_png(table: Sequence[dict[str, Any]], sweep: Sequence[dict[str, Any]] = ()) -> bytes:
    """Accuracy over speed-up, a point a model, with the standard error; lines join the frontier and a model's thresholds.

    A diamond is self-speculation, which has no threshold.
    """
    figure, axes = _figure(7, 4)
    best = sorted((row["speedup"], 100 * row["accuracy"]) for row in table if row["on_frontier"])
    axes.plot([x for x, _ in best], [y for _, y in best], color="tab:gray", linewidth=1, zorder=0)
    for row in table:
        colour = {"source": "black", "pbm": "tab:blue", "swd": "tab:red"}[row["stage"]]
        mine = [point for point in sweep if point["model"] == row["model"]]
        for has_threshold, style in ((True, ".-"), (False, "D")):
            points = [point for point in mine if (point["confidence_threshold"] is not None) == has_threshold]
            x, y = [point["speedup"] for point in points], [100 * point["accuracy"] for point in points]
            axes.plot(x, y, style, color=colour, linewidth=0.8, markersize=5, fillstyle="none", alpha=0.6)
        axes.errorbar(row["speedup"], 100 * row["accuracy"], yerr=100 * row["accuracy_stderr"], fmt="o", color=colour, capsize=3)
        beside = (7, -12) if row["stage"] == "swd" else (7, 5)  # a student is often near the model it started from
        axes.annotate(row["model"], (row["speedup"], 100 * row["accuracy"]), textcoords="offset points", xytext=beside)
    axes.margins(x=0.2, y=0.12)
    axes.set(xlabel="speed-up over autoregressive decoding (batch 1)", ylabel="accuracy, %")
    axes.grid(alpha=0.3)
    return _png(figure)


def curves_png(curves: dict[str, list[dict[str, float]]]) -> bytes:
    """Training loss over steps, a line a model; below, accuracy on held-out samples of the runs that looked."""
    looked = {
        name: [(record["step"], 100 * record["val_accuracy"]) for record in records if "val_accuracy" in record]
        for name, records in curves.items()
    }
    figure, panels = _figure(7, 4, 2 if any(looked.values()) else 1)
    axes = panels[0] if any(looked.values()) else panels
    for name, records in curves.items():
        if records:
            axes.plot([record["step"] for record in records], [record["loss"] for record in records], label=name)
    axes.set(xlabel="step", ylabel="training loss (objectives differ)", yscale="log")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    if any(looked.values()):
        for name, points in looked.items():
            if points:
                panels[1].plot([step for step, _ in points], [share for _, share in points], ".-", label=name)
        panels[1].set(xlabel="step", ylabel="held-out tokens guessed right, %, mean over noise levels")
        panels[1].grid(alpha=0.3)
        panels[1].legend()
    return _png(figure)
