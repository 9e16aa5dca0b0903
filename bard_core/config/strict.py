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


class Later:
    """Marks a field that came after artifacts had been made: at its default no digest counts it, so they keep their names."""


def decisive(model: BaseModel) -> dict[str, Any]:
    """The fields of a model that a digest counts, by name."""
    fields = type(model).model_fields.items()
    values = {name: getattr(model, name) for name, _ in fields}
    unsaid = {name for name, field in fields if Later in field.metadata and values[name] == field.default}
    return {name: value for name, value in values.items() if name not in unsaid}


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
