"""Flyte's local cache, in the home folder and believed only as far as what it points to.

A cached answer is a ref. Where its artifact is gone, was set aside as damaged, or is another by now, there is no answer, and the
task runs. A cache that is damaged itself is set aside, and an answer that is not what was kept, bit by bit, is none: tasks run,
and find their artifacts standing.
"""

import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import msgpack
from flytekit.core import local_cache
from flytekit.models.literals import Literal, LiteralMap

from bard_core.data import units
from bard_core.store import artifacts, databases, storage

log = logging.getLogger(__name__)
_get, _set = local_cache.LocalTaskCache.get, local_cache.LocalTaskCache.set


def use() -> None:
    """Keep Flyte's local cache with the artifacts that its entries point at, not in the user's home, shared by every checkout."""
    folder = storage.home() / "flyte" / "cache"
    databases.set_aside_if_damaged(
        folder / "cache.db", folder, "Flyte's local cache begins anew; artifacts that stand are found and used"
    )
    local_cache.CACHE_LOCATION = str(folder)
    local_cache.LocalTaskCache.get, local_cache.LocalTaskCache.set = staticmethod(believed), staticmethod(kept)


def kept(task_name: str, *rest: Any) -> None:
    """Keep an answer, and its sha256 beside it."""
    *key, value = rest
    _set(task_name, *key, value)
    local_cache.LocalTaskCache._cache.set(_sum_of(task_name, *key), _sha256(value))


def _sum_of(task_name: str, *key: Any) -> str:
    return f"{local_cache._calculate_cache_key(task_name, *key)}-sha256"


def _sha256(value: LiteralMap) -> str:
    return hashlib.sha256(value.to_flyte_idl().SerializeToString(deterministic=True)).hexdigest()


def believed(task_name: str, *key: Any) -> LiteralMap | None:
    """What the cache says, or None where what it points to does not stand (sizes are looked at, bytes by who reads them)."""
    try:
        found = _whole(task_name, *key)
    except Exception as error:  # noqa: BLE001 - a damaged entry may raise anything
        log.warning("%s: its entry in Flyte's cache is damaged (%s); the task runs again", task_name, error)
        return None
    try:
        for ref in _refs(found) if found is not None else ():
            _look(ref)
    except artifacts.ArtifactError as error:
        log.warning("%s: not taken from Flyte's cache, because %s", task_name, str(error).removesuffix(f"; {artifacts.AGAIN}"))
        return None
    return found


def _whole(task_name: str, *key: Any) -> LiteralMap | None:
    found = _get(task_name, *key)
    if found is not None and _sha256(found) != local_cache.LocalTaskCache._cache.get(_sum_of(task_name, *key)):
        raise ValueError("it is not what was kept")
    return found


def _look(ref: dict[str, Any]) -> None:
    if artifacts.verify(ref["uri"], hashes=False).digest != ref["manifest_sha256"]:
        raise artifacts.ArtifactError(f"{ref['uri']} was replaced since")
    if "base_uri" in ref:
        artifacts.verify(ref["base_uri"], hashes=False)
    if "num_train" in ref and (lost := units.lacking(ref["uri"])):
        raise artifacts.ArtifactError(f"{ref['uri']} lacks its unit {lost[0]}")


def _refs(found: LiteralMap) -> Iterator[dict[str, Any]]:
    for literal in found.literals.values():
        yield from _in_value(_value(literal))


def _value(literal: Literal) -> Any:
    """A literal's pydantic model or models as plain values; None for anything else."""
    if literal.collection is not None:
        return [_value(one) for one in literal.collection.literals]
    if literal.scalar is not None and literal.scalar.binary is not None:
        return msgpack.unpackb(literal.scalar.binary.value, strict_map_key=False)
    return None


def _in_value(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if {"uri", "manifest_sha256"} <= value.keys():
            yield value
        for inner in value.values():
            yield from _in_value(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _in_value(inner)
