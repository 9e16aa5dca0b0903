"""How far a pipeline of this process is: what stands, told before the first stage, and what is left, before each training."""

from bard_core.config.file import PipelineConfig
from bard_core.forecast import Forecast, duration, forecast

_config: list[PipelineConfig] = []


def expect(config: PipelineConfig) -> None:
    """Say what will run, and remember what to look for."""
    _config[:] = [config]
    print("\n".join(forecast(config).lines), flush=True)


def begin(name: str) -> None:
    """Say which of the trainings begins and how long the rest takes, by what is known by now."""
    if _config and (line := said(forecast(_config[0]), name)):
        print(line, flush=True)


def said(ahead: Forecast, name: str) -> str:
    """``stage 3 of 6: pbm-b8, about 5 min left``; empty for a training that is not the pipeline's."""
    names = [item.name for item in ahead.trainings]
    if name not in names:
        return ""
    seconds = ahead.seconds_from(name)
    left = "" if seconds is None else f", about {duration(seconds)} left"
    return f"stage {names.index(name) + 1} of {len(names)}: {name}{left}"
