"""The pipeline's own workflow on Flyte 2, in this process, by flyte-migrate.

    make flyte2 CONFIG=configs/lab.yaml

Flyte 2 has no ``on_failure``: a failure is in its log. No cluster of Flyte 2 has been tried.
"""

import inspect
import sys
from pathlib import Path
from typing import Any

# isort: off
import flytekitplugins.ray  # noqa: F401 - before flyte_migrate, which replaces what it is built on
import flyte_migrate  # noqa: F401 - before the workflows
import flyte
import yaml

# isort: on
from workflows.pipeline import bard_pipeline


def inputs_of(sections: dict[str, Any]) -> dict[str, Any]:
    """The file's sections in the workflow's types. Raises ValidationError, and TypeError for a section it does not know."""
    signature = inspect.signature(bard_pipeline.func)
    given = signature.bind(**sections).arguments
    types = {name: signature.parameters[name].annotation for name in given}
    return {name: types[name].model_validate(value) if isinstance(value, dict) else value for name, value in given.items()}


def main(config: str) -> None:
    inputs = inputs_of(yaml.safe_load(Path(config).read_text(encoding="utf-8")))
    flyte.init()
    flyte.with_runcontext(mode="local").run(bard_pipeline, **inputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
