"""The configuration reference, written from the sections themselves: every key, what it may be, its default and its meaning."""

import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bard_core.config.file import PipelineConfig

HEAD = """# Configuration

One YAML file holds everything; every section is one input of the pipeline. This page is written by `bard schema --markdown`.
"""


def reference() -> str:
    """The page, as Markdown: a table a section."""
    parts = [HEAD, _table("The file", "", PipelineConfig)]
    seen: set[type[BaseModel]] = {PipelineConfig}
    parts += [text for name, field in PipelineConfig.model_fields.items() for text in _sections(name, field, seen)]
    return "\n".join(parts).rstrip() + "\n"


def _sections(key: str, field: FieldInfo, seen: set[type[BaseModel]]) -> Iterator[str]:
    """A table for each model below a key; one that stands in several places is shown at the first."""
    for model in _models(field.annotation):
        if model in seen:
            continue
        seen.add(model)
        yield _table(key, (model.__doc__ or "").strip(), model)
        for name, below in model.model_fields.items():
            yield from _sections(f"{key}.{name}", below, seen)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _table(title: str, words: str, model: type[BaseModel]) -> str:
    lines = [
        f"## {title}",
        "",
        *([words, ""] if words else []),
        "| key | values | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for name, field in model.model_fields.items():
        cells = (f"`{name}`", _values(field), _default(field), field.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _values(field: FieldInfo) -> str:
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [f"{sign} {getattr(rule, name):g}" for rule in field.metadata for name, sign in bounds.items() if hasattr(rule, name)]
    return ", ".join([_kind(field.annotation), *found])


def _kind(annotation: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0])
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _kind(part) for part in parts)
    if origin is tuple:
        inner = [_kind(part) for part in parts if part is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in parts else f"[{', '.join(inner)}]"
    if origin is dict:
        return f"map of {_kind(parts[0])} to {_kind(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"section {annotation.__name__.removesuffix('Config')}"
    return {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}.get(annotation, str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if isinstance(value, BaseModel) else f"`{json.dumps(value, ensure_ascii=False, default=_plain)}`"


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_unset=True)
