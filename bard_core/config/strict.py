"""What every section is: a frozen model that refuses unknown keys, and says which there are."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

UNKNOWN_KEY = "unknown_key"  # the type of pydantic's error; its context holds what to say of each key


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys, and says which there are."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        known = list(cls.model_fields)
        if unknown := {str(key): unknown_key(key, known) for key in values if key not in known} if _is_map(values) else {}:
            said = "; ".join(f"unknown key {key!r}: {words}" for key, words in unknown.items())
            raise PydanticCustomError(UNKNOWN_KEY, "{said}", {"said": said, "keys": unknown})
        return values

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads ``yes`` and ``on`` as true, which pydantic would take for 1."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind is not bool:
            raise ValueError("a number or a word is wanted here, not yes or no")
        return value


def is_none(value: Any) -> bool:
    """For ``Field(exclude_if=...)`` of a knob that came later: unused, it leaves a configuration's digest as it was."""
    return value is None


def is_linear(value: Any) -> bool:
    """As ``is_none``, of a schedule."""
    return bool(value == "linear")


def is_uniform(value: Any) -> bool:
    """As ``is_none``, of how block sizes are drawn."""
    return bool(value == "uniform")


def is_evaluation(value: Any) -> bool:
    """As ``is_none``, of the images that are held out."""
    return bool(value == "evaluation")


def is_empty(value: Any) -> bool:
    """As ``is_none``, of a list."""
    return not value


def is_one(value: Any) -> bool:
    """As ``is_none``, of a power."""
    return bool(value == 1.0)


def unknown_key(key: object, known: Sequence[str]) -> str:
    """What to say of a key that is not among those known."""
    close = get_close_matches(str(key), known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"allowed are {', '.join(known)}"


def _is_map(values: Any) -> bool:
    return isinstance(values, Mapping)


def _name(name: str) -> str:
    if not re.fullmatch(r"\w[\w .+()-]*", name) or ".." in name:
        raise ValueError(f"{name!r} is no name for a folder: letters, digits, '_', '-', '+', (), single dots and spaces only")
    return name


Name = Annotated[str, StringConstraints(min_length=1), AfterValidator(_name)]  # becomes part of a path
