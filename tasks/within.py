"""A task in the pod that a run's ``compute`` describes.

On Flyte 1 a call gives a promise, which is told afterwards what its pod should be. On Flyte 2 (``make flyte2``, by flyte-migrate)
a call is the work itself and gives its result; there, tasks have the sizes that they declare.
"""

import sys
from collections.abc import Callable
from typing import Any


def within(how: dict[str, Any], task: Any) -> Callable[..., Any]:
    """``task``, or a mapped one, to be called with its inputs.

    Args:
        how: what ``tasks.resources.pod`` or ``tasks.ray_cluster.training`` gave.
    """
    if on_flyte2():
        return task
    return lambda **inputs: task(**inputs).with_overrides(**how)


def declared(how: dict[str, Any]) -> dict[str, Any]:
    """``how`` as a decorator takes it: flyte-migrate can say a disk once only."""
    return {name: value for name, value in how.items() if name != "requests"} if on_flyte2() else how


def on_flyte2() -> bool:
    return "flyte_migrate" in sys.modules
