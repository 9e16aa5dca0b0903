"""Files that a ``messages`` row only names: read below one root, which no path may leave."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bard_core.data.refusal import RowRefused
from bard_core.data.rows import ShardDamagedError, rows_of
from bard_core.data.sources import Shard
from bard_core.store import storage


class Media:
    """The files that a shard's rows name."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.root = shard.source.root or shard.uri.rsplit("/", 1)[0]

    def read(self, name: str) -> bytes:
        """The bytes of a named file.

        Raises:
            RowRefused: it leads out of the root, or is not there.
        """
        if self.shard.source.schema_name != "messages":
            raise RowRefused("image bytes missing", f"only a path: {name!r:.80}")
        steps = name.replace("\\", "/").split("/")
        if not name or not steps[0] or ".." in steps or "\0" in name or "://" in name:
            raise RowRefused("path leads out of the root", f"{name!r:.80}")
        if storage.is_local(self.root):
            root = storage.local_path(self.root).resolve()
            path = (root / name).resolve()
            if not path.is_relative_to(root):
                raise RowRefused("path leads out of the root", f"{name!r:.80} is a link to elsewhere")
            return self._local(path, name)
        try:
            return storage.read_bytes(storage.join(self.root, name))
        except storage.StorageError as error:
            raise RowRefused("image file missing", f"{name!r:.80} is not below {self.root}") from error

    def _local(self, path: Path, name: str) -> bytes:
        try:
            return path.read_bytes()
        except (FileNotFoundError, IsADirectoryError, ValueError) as error:
            raise RowRefused("image file missing", f"{name!r:.80} is not below {self.root}") from error

    def digest(self, path: Path) -> str:
        """sha256 over every file that the shard at ``path`` names, so that a changed image makes another unit; "" for none."""
        if self.shard.source.schema_name != "messages":
            return ""
        names: set[str] = set()
        try:
            for row in rows_of(path, self.shard.format, self.shard.source):
                if not isinstance(row, RowRefused):
                    names.update(_paths(row))
        except ShardDamagedError:
            return ""
        total = hashlib.sha256()
        for name in sorted(names, key=lambda name: name.encode("utf-8", "surrogatepass")):
            try:
                found = hashlib.sha256(self.read(name)).hexdigest()
            except RowRefused as refusal:
                found = refusal.reason
            total.update(json.dumps([name, found]).encode())
        return total.hexdigest() if names else ""


def _paths(value: Any) -> Iterator[str]:
    """Texts that stand where an image or video may: under image, video, path, images, videos; and in lists of those."""
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            return
        for key, item in value.items():
            if key in ("image", "video", "path", "images", "videos"):
                yield from [item] if isinstance(item, str) else _strings(item)
            elif key in ("messages", "content"):
                yield from _paths(_parsed(item))
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item)


def _parsed(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            if isinstance(item, str):
                yield item
            else:
                yield from _paths(item)
    else:
        yield from _paths(value)
