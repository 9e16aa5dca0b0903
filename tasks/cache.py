"""Flyte's local cache, in the home folder and believed only as far as what it points to.

A cached answer is a ref. Where its artifact is gone, was set aside as damaged, or is another by now, there is no answer, and the
task runs. A cache that is damaged itself is set aside: tasks run, and find their artifacts standing.
"""

import logging
from collections.abc import Iterator
from typing import Any

import msgpack
from flytekit.core import local_cache
from flytekit.models.literals import Literal, LiteralMap

from bard_core.store import artifacts, databases, storage

log = logging.getLogger(__name__)
_get = local_cache.LocalTaskCache.get


def use() -> None:
    """Keep Flyte's local cache with the artifacts that its entries point at, not in the user's home, shared by every checkout."""
    folder = storage.home() / "flyte" / "cache"
    databases.set_aside_if_damaged(
        folder / "cache.db", folder, "Flyte's local cache begins anew; artifacts that stand are found and used"
    )
    local_cache.CACHE_LOCATION = str(folder)
    local_cache.LocalTaskCache.get = staticmethod(believed)


def believed(task_name: str, *key: Any) -> LiteralMap | None:
    """What the cache says, or None where what it points to does not stand (sizes are looked at, bytes by who reads them)."""
    try:
        found = _get(task_name, *key)
        for ref in _refs(found) if found is not None else ():
            _look(ref)
    except artifacts.ArtifactError as error:
        log.warning("%s: not taken from Flyte's cache, because %s", task_name, str(error).removesuffix(f"; {artifacts.AGAIN}"))
        return None
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:  # an entry that cannot be read
        log.warning("%s: its entry in Flyte's cache is damaged (%s); the task runs again", task_name, error)
        return None
    return found


def _look(ref: dict[str, Any]) -> None:
    if artifacts.verify(ref["uri"], hashes=False).digest != ref["manifest_sha256"]:
        raise artifacts.ArtifactError(f"{ref['uri']} was replaced since")
    if "base_uri" in ref:
        artifacts.verify(ref["base_uri"], hashes=False)


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
