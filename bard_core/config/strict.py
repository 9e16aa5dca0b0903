"""What every section is: a frozen model that refuses unknown keys, and says which there are."""

import operator
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

UNKNOWN_KEY = "unknown_key"  # the type of pydantic's error; its context holds what to say of each key
AT_KEY = "at_key"  # likewise, of one key below the place that pydantic names; its context holds ``key``


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


def later(default: Any, **how: Any) -> Any:
    """A pydantic ``Field`` that came later: at its default it is left out, so a configuration's digest stays what it was."""
    return Field(default, exclude_if=partial(operator.eq, default), **how)


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


Name = Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(_name)]  # becomes part of a path
