"""The pictures of a report and of the leaderboard: accuracy over speed, and training curves, for light pages and for dark."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Draw = Callable[[Any, bool], None]  # draws on the axes; whether the surroundings are dark
SIZE = (8.0, 4.6)  # inches
COLOURS = {"source": ("#222222", "#eeeeee"), "pbm": ("#1f5fbf", "#8ab4f8"), "swd": ("#b3261e", "#ff8a80")}


def _draw(draw: Draw, kind: str, dark: bool = False) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ink = "#d6dce2" if dark else "#1a232d"
    style = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
    settings: Any = {**style, "svg.hashsalt": "bard", "svg.fonttype": "none", "font.size": 11, "font.family": "sans-serif"}
    with pyplot.rc_context(settings):
        figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        draw(axes, dark)
        buffer = io.BytesIO()
        facts = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        figure.savefig(buffer, format=kind, dpi=120, metadata=facts, transparent=kind == "svg")
        pyplot.close(figure)
    return buffer.getvalue()


def frontier_png(table: Sequence[dict[str, Any]], sweep: Sequence[dict[str, Any]] = ()) -> bytes:
    """Accuracy over speed-up, a point a model, with the standard error; lines join the frontier and a model's thresholds.

    A diamond is self-speculation, which has no threshold.
    """
    return _draw(_frontier(table, sweep), "png")


def frontier_svgs(table: Sequence[dict[str, Any]], sweep: Sequence[dict[str, Any]] = ()) -> tuple[bytes, bytes]:
    """The same for light surroundings, and for dark."""
    return _draw(_frontier(table, sweep), "svg"), _draw(_frontier(table, sweep), "svg", dark=True)


def series_png(
    series: Mapping[str, Sequence[tuple[float, float, float]]], across: str, up: str, logarithmic: bool = False
) -> bytes:
    """Lines through (x, y, error of y), one a name; ``across`` and ``up`` name the axes, ``logarithmic`` to base 2."""

    def draw(axes: Any, dark: bool) -> None:
        for name, points in series.items():
            x, y, error = zip(*points, strict=True)
            axes.errorbar(x, y, yerr=error, fmt=".-", markersize=7, linewidth=1.2, capsize=2, label=name)
        axes.set(xlabel=across, ylabel=up)
        if logarithmic:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
        axes.legend(framealpha=0.0, fontsize=9)

    return _draw(draw, "png")


def curves_png(curves: dict[str, list[dict[str, float]]]) -> bytes:
    """Training loss over steps, a line a model; crosses: plain cross entropy on held-out samples, where the run looked."""
    return _draw(_curves(curves), "png")


def curves_svgs(curves: dict[str, list[dict[str, float]]]) -> tuple[bytes, bytes]:
    """The same for light surroundings, and for dark."""
    return _draw(_curves(curves), "svg"), _draw(_curves(curves), "svg", dark=True)


def _frontier(table: Sequence[dict[str, Any]], sweep: Sequence[dict[str, Any]]) -> Draw:
    def draw(axes: Any, dark: bool) -> None:
        best = sorted((row["speedup"], 100 * row["accuracy"]) for row in table if row["on_frontier"])
        axes.plot([x for x, _ in best], [y for _, y in best], color="#8a94a0", linewidth=6, alpha=0.25, zorder=0)
        for number, row in enumerate(table):
            colour = COLOURS[row["stage"]][dark]
            mine = [point for point in sweep if point["model"] == row["model"]]
            for has_threshold, style in ((True, ".-"), (False, "D")):
                points = [point for point in mine if (point["confidence_threshold"] is not None) == has_threshold]
                x, y = [point["speedup"] for point in points], [100 * point["accuracy"] for point in points]
                axes.plot(x, y, style, color=colour, linewidth=1.2, markersize=6, fillstyle="none", alpha=0.7)
                for point in (p for p in points if has_threshold and p["speedup"] != row["speedup"]):
                    at = (point["speedup"], 100 * point["accuracy"])
                    side, ha = (4, "left") if point["speedup"] > row["speedup"] else (-4, "right")  # away from the model's own
                    beside = {"textcoords": "offset points", "xytext": (side, -11), "ha": ha, "fontsize": 8, "alpha": 0.8}
                    axes.annotate(f"{point['confidence_threshold']:g}", at, color=colour, **beside)
            error = 100 * row["accuracy_stderr"]
            axes.errorbar(row["speedup"], 100 * row["accuracy"], yerr=error, fmt="o", markersize=8, color=colour, capsize=3)
            above = (8, 7) if number % 2 == 0 else (8, 16)  # neighbours in the table are often neighbours here
            where = (row["speedup"], 100 * row["accuracy"])
            axes.annotate(row["model"], where, textcoords="offset points", xytext=above, color=colour, fontweight="bold")
        axes.margins(x=0.12, y=0.14)
        axes.set(xlabel="speed-up over autoregressive decoding (batch 1)", ylabel="accuracy, %")

    return draw


def _curves(curves: dict[str, list[dict[str, float]]]) -> Draw:
    def draw(axes: Any, dark: bool) -> None:
        for name, records in curves.items():
            if records:
                axes.plot([record["step"] for record in records], [record["loss"] for record in records], label=name)
            if looked := [(record["step"], record["val_loss"]) for record in records if "val_loss" in record]:
                axes.plot(*zip(*looked, strict=True), "x--", color=axes.lines[-1].get_color(), label=f"{name}, held-out")
        axes.set(xlabel="step", ylabel="training loss (objectives differ)", yscale="log")
        if axes.lines:
            axes.legend(framealpha=0.0)

    return draw
