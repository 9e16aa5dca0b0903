"""Reading a configuration file so that all its faults are told at once, each with its line.

    configs/lab.yaml:77: evaluation.decoding.confidence_threshold: is 1.5; allowed: less than or equal to 1

A value may also come from the command line (``--swd.train.optimizer.lr 1e-3``); then that is its place.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bard_core.config.file import STAGE_FAULTS, PipelineConfig
from bard_core.config.file import Fault as KeyFault
from bard_core.config.strict import AT_KEY, UNKNOWN_KEY

Key = tuple[str | int, ...]
Override = tuple[str, str]  # a dotted key and its value as YAML
Check = Callable[[PipelineConfig], Iterable[KeyFault]]
WANTED = re.compile(r"(?:\w+ should (?:be|have) )(.*)", re.DOTALL)  # pydantic's own words
SHAPES: dict[type, str] = {dict: "keys of its own", list: "a list"}
OURS = (
    (re.compile(r"a valid tuple"), SHAPES[list]),
    (re.compile(r"a valid dictionary or instance of \w+"), SHAPES[dict]),
)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. ``place`` is ``file:line`` or the option of the command line."""

    place: str
    key: str
    problem: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.key, self.problem) if part)


class ConfigFaultsError(ValueError):
    """A configuration cannot be used. Its text has one fault a line."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = tuple(faults)


def read_config(path: Path, overrides: Sequence[Override] = (), checks: Sequence[Check] = ()) -> PipelineConfig:
    """The configuration of a file with ``overrides`` put in; ``checks`` see what the file alone cannot.

    Raises:
        ConfigFaultsError: all that is wrong with it.
    """
    text = _text(path)
    lines, faults = _lines(path, text)
    values = _unshared(yaml.safe_load(text))
    places = {key: f"{path}:{line}" for key, line in lines.items()}
    for dotted, value in overrides:
        key = _keys(dotted)
        if problem := _put(values, key, value):
            faults.append(Fault(f"--{dotted}", dotted, problem))
        else:
            places = {known: place for known, place in places.items() if known[: len(key)] != key}
            for depth in range(len(key), 0, -1):
                places.setdefault(key[:depth], f"--{dotted} {value}")
    config, found = _validated(values)
    if config is not None:
        found += [fault for check in checks for fault in check(config)]
    faults += [Fault(_place(places, _keys(dotted)), dotted, problem) for dotted, problem in found]
    if faults or config is None:
        raise ConfigFaultsError(sorted(dict.fromkeys(faults), key=lambda fault: _order(fault.place)))
    return config


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigFaultsError([Fault(str(path), "", f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigFaultsError([Fault(str(path), "", f"is not UTF-8 text: byte {error.start}")]) from error


def _lines(path: Path, text: str) -> tuple[dict[Key, int], list[Fault]]:
    """The line of every key, and the keys that stand there twice.

    Raises:
        ConfigFaultsError: it is not YAML, or not a mapping, or a value is none that a configuration can hold.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if isinstance(root, yaml.MappingNode):
            walk = _Walk(path)
            walk.down(root, (), frozenset())
            if walk.broken:
                raise ConfigFaultsError(walk.broken)
        yaml.safe_load(text)
    except RecursionError as error:
        raise ConfigFaultsError([Fault(str(path), "", "is nested too deeply to be read")]) from error
    except yaml.reader.ReaderError as error:
        place = f"{path}:{text[: error.position].count(chr(10)) + 1}"
        raise ConfigFaultsError([Fault(place, "", f"not YAML: character #x{error.character:04x} stands there")]) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigFaultsError([Fault(place, "", f"not YAML: {getattr(error, 'problem', None) or error}")]) from error
    if not isinstance(root, yaml.MappingNode):
        raise ConfigFaultsError(
            [Fault(f"{path}:1", "", "must be a mapping of sections: " + ", ".join(PipelineConfig.model_fields))]
        )
    return walk.lines, walk.twice


class _Walk:
    """Goes through a file as it is written.

    Attributes:
        lines: of every key. twice: keys that stand there twice. broken: values that cannot be built.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Key, int] = {(): 1}
        self.twice: list[Fault] = []
        self.broken: list[Fault] = []

    def down(self, node: Any, key: Key, above: frozenset[int]) -> None:
        """Look below ``node``; what ``<<`` merges in comes first, so that what stands here wins."""
        if id(node) in above:
            self.broken.append(self._fault(node, key, "stands inside itself, by an alias"))
            return
        above = above | {id(node)}
        if isinstance(node, yaml.ScalarNode):
            self._scalar(node, key)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.lines[(*key, index)] = item.start_mark.line + 1
                self.down(item, (*key, index), above)
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, key, above)

    def _mapping(self, node: Any, key: Key, above: frozenset[int]) -> None:
        own: dict[str, int] = {}
        for merged in [value for name, value in node.value if name.tag == "tag:yaml.org,2002:merge"]:
            for part in merged.value if isinstance(merged, yaml.SequenceNode) else [merged]:
                self.down(part, key, above)
        for name, value in node.value:
            if name.tag == "tag:yaml.org,2002:merge":
                continue
            word, line = str(name.value), name.start_mark.line + 1
            if word in own:
                self.twice.append(self._fault(name, (*key, word), f"stands here twice, first in line {own[word]}; keep one"))
            own[word] = self.lines[(*key, word)] = line
            self.down(value, (*key, word), above)

    def _scalar(self, node: Any, key: Key) -> None:
        """Dates and numbers that are none are told here; what else is no YAML, when all of it is built."""
        with suppress(yaml.YAMLError):
            try:
                yaml.SafeLoader("").construct_object(node)
            except ValueError as error:
                self.broken.append(self._fault(node, key, f"{node.value[:40]!r} cannot be read: {error}"))

    def _fault(self, node: Any, key: Key, problem: str) -> Fault:
        return Fault(f"{self.path}:{node.start_mark.line + 1}", ".".join(map(str, key)), problem)


def _unshared(value: Any) -> Any:
    """A copy in which no two places are one object, as YAML's aliases make them."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _keys(dotted: str) -> Key:
    return tuple(int(part) if part.isdigit() else part for part in dotted.split(".")) if dotted else ()


def _put(values: Any, key: Key, text: str) -> str | None:
    """Set one value in place; says why it cannot be."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return f"{text!r} is not YAML"
    for depth, (part, after) in enumerate(zip(key, (*key[1:], None), strict=True)):
        if isinstance(values, list):
            if not isinstance(part, int) or part >= len(values):
                return f"{'.'.join(map(str, key[:depth]))} has entries 0 to {len(values) - 1}"
        elif not isinstance(values, dict):
            return f"{'.'.join(map(str, key[:depth]))} is {values!r}, which has no keys"
        if after is None:
            values[part] = value
            return None
        if isinstance(values, dict) and values.get(part) is None:
            values[part] = {}
        values = values[part]
    return None


def _validated(values: Any) -> tuple[PipelineConfig | None, list[KeyFault]]:
    """The configuration, or every fault that pydantic finds; unknown keys are taken out, so that they hide nothing."""
    faults: list[KeyFault] = []
    while True:
        try:
            return PipelineConfig.model_validate(values), faults
        except ValidationError as error:
            found = error.errors()
        unknown = [item for item in found if item["type"] == UNKNOWN_KEY]
        for item in unknown:
            key = _known_part(values, item["loc"])
            for name, words in item["ctx"]["keys"].items():
                faults.append((".".join(map(str, (*key, name))), f"unknown key; {words}"))
        taken = [_take_out(values, _known_part(values, item["loc"]), set(item["ctx"]["keys"])) for item in unknown]
        if not any(taken):  # nothing was unknown, or it stands in the file that a ``base`` names
            return None, [*faults, *_told(values, [item for item in found if item not in unknown])]


def _take_out(values: Any, key: Key, names: set[str]) -> bool:
    """Whether any of the names stood below the key."""
    for part in key:
        values = values[part]
    there = [name for name in values if str(name) in names]
    for name in there:
        del values[name]
    return bool(there)


def _known_part(values: Any, loc: Sequence[str | int]) -> Key:
    """The part of pydantic's location that is a key of the file; a union's branches are not."""
    key: list[str | int] = []
    for part in loc:
        inside = part in values if isinstance(values, Mapping) else isinstance(part, int) and isinstance(values, list)
        if inside:
            values = values[part]
            key.append(part)
    return tuple(key)


def _told(values: Any, found: Sequence[ErrorDetails]) -> list[KeyFault]:
    """What pydantic found, a fault a key: a union's complaints are joined."""
    said: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    for item in found:
        key = _known_part(values, item["loc"])
        if item["type"] == "missing":
            said[".".join(map(str, (*key, item["loc"][-1])))] = ["is missing and has no default"]
            continue
        if item["type"] == STAGE_FAULTS:
            for name, problem in item["ctx"]["faults"]:
                said.setdefault(name, []).append(problem)
            continue
        below = (item["ctx"]["key"],) if item["type"] == AT_KEY else ()
        dotted = ".".join(map(str, (*key, *below)))
        said.setdefault(dotted, []).append(item["msg"].removeprefix("Value error, "))
        given[dotted] = SHAPES.get(type(item["input"]), repr(item["input"]))
    return [(key, _sentence(messages, given.get(key))) for key, messages in said.items()]


def _sentence(messages: Sequence[str], given: str | None) -> str:
    found = [WANTED.match(message) for message in messages]
    allowed = [match[1].partition(", unable")[0] for match in found if match]
    for pydantics, ours in OURS:
        allowed = [pydantics.sub(ours, words) for words in allowed]
    other = [message for message, match in zip(messages, found, strict=True) if not match]
    value = f"is {given}; " if given and allowed else ""
    return "; ".join([*other, *([f"{value}allowed: {', or '.join(dict.fromkeys(allowed))}"] if allowed else [])])


def _place(places: Mapping[Key, str], key: Key) -> str:
    """Where the key stands, or the nearest thing above it that stands somewhere."""
    while key not in places:
        key = key[:-1]
    return places[key]


def _order(place: str) -> tuple[str, int]:
    name, _, line = place.rpartition(":")
    return (name, int(line)) if line.isdigit() else (place, 0)
