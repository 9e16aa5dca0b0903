"""Sections that stand on a file: ``base`` names one of configs/<folder>, and what stands beside it takes precedence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from bard_core.config.strict import AT_KEY, StrictModel

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class Based(StrictModel):
    """A section that may stand on a file. ``base`` is a name in configs/``FOLDER``, or a path; sections below are merged too."""

    FOLDER: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _on_base(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "base" not in values:
            return values
        import yaml

        folder = CONFIGS / cls.FOLDER
        named = folder / f"{values['base']}.yaml"
        path = named if named.is_file() else Path(str(values["base"])).expanduser()
        if not path.is_file():
            known = ", ".join(sorted(found.stem for found in folder.glob("*.yaml")))
            raise _fault(f"{values['base']!r} is no file and none of configs/{cls.FOLDER}: {known}")
        try:
            base = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, OSError, ValueError) as error:
            raise _fault(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        return merged(base, {key: values[key] for key in values if key != "base"})


def _fault(said: str) -> PydanticCustomError:
    return PydanticCustomError(AT_KEY, "{said}", {"said": said, "key": "base"})


def merged(base: Any, over: Any) -> Any:
    """Mappings key by key; anything else is ``over``."""
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return over
    return {**base, **{key: merged(base[key], value) if key in base else value for key, value in over.items()}}
