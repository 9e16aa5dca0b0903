"""evaluate and compare: what a model scores, and against which."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bard_core.cli import models
from bard_core.cli.configuration import Config, Json, read


def add_to(app: typer.Typer) -> None:
    app.command()(evaluate)
    app.command()(compare)


def evaluate(
    context: typer.Context,
    config: Config,
    model: Annotated[str, typer.Option(help=models.HELP, show_default=False)],
    source: Annotated[str, typer.Option(help="the autoregressive model that speed is measured against", show_default=False)],
    dataset: Annotated[str, typer.Option(help="a prepared dataset's folder or s3:// place", show_default=False)],
    output: Annotated[str, typer.Option("--output", "-o", help="folder of the result", show_default=False)],
    as_json: Json = False,
) -> None:
    """Judge a model by the suite that `evaluation` names: accuracy, tokens per forward, speed against the source.

    Example: bard evaluate configs/lab.yaml --model swd-b32 --source source --dataset data/lab -o scores/swd-b32
    """
    settings = read(context, config)
    from bard_core.evaluation.evaluate import evaluate as judge

    baseline = models.model_ref(source, stage="source")
    result = judge(models.model_ref(model), baseline, models.dataset_ref(dataset), settings.evaluation, output)
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    for score in result.benchmarks:
        print(f"{score.name}: {100 * score.accuracy:.1f} ± {100 * score.accuracy_stderr:.1f} % of {score.num_samples}")
    print(f"{result.tokens_per_forward:.2f} tokens a forward, {result.tokens_per_s:.0f} tok/s, {result.speedup:.2f}x the source")
    if result.missing:
        print(f"NO SCORE for {', '.join(result.missing)}")


def compare(
    baseline: Annotated[Path, typer.Argument(help="an evaluation's folder", show_default=False)],
    candidate: Annotated[Path, typer.Argument(help="another's, on the same samples", show_default=False)],
    as_json: Json = False,
) -> None:
    """Compare two evaluations sample by sample: the difference, its error, wins and losses, and how sure that is.

    Example: bard compare scores/source scores/swd-b32
    """
    from bard_core.evaluation.compare import load_samples, paired

    results = [models.evaluation_of(str(place)) for place in (baseline, candidate)]
    found = paired(load_samples(results[0]), load_samples(results[1]))
    speed = results[1].speedup / results[0].speedup
    if as_json:
        print(json.dumps({**asdict(found), "speed_ratio": speed}, indent=2))
        return
    print(f"{results[1].model.name} against {results[0].model.name} on {found.num_samples} samples")
    print(f"accuracy {100 * found.difference:+.1f} ± {100 * found.stderr:.1f} points: {found.wins} won, {found.losses} lost")
    print(f"by chance with p = {found.p_value:.2g}; {100 * found.smallest_detectable:.1f} points could have been seen")
    print(f"speed {speed:.2f}x")
