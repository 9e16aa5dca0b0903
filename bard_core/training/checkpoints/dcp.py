"""Torch DCP folders: written with nothing in them but the state, and read without trusting their pickles.

Only the classes that DCP itself writes are unpickled.

A manifest proves that a folder is what was committed, not that whoever committed it was honest. ``.metadata`` is a pickle, and
so are the non-tensor entries of the shards; stock DCP would run whatever they ask for.
"""

import io
import pickle
import queue
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import DEFAULT_SUFFIX, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

BUFFER_BYTES = 2**24
OPTIMIZER = "optimizer"  # the key of a checkpoint's state, and what the names of its files begin with
MODEL_PART = (".metadata", "__")  # what the names of all other files begin with
ALLOWED = {
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
    "torch._utils": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in ALLOWED.get(module, ()) or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f".metadata asks for {module}.{name}, which no checkpoint needs: the folder was tampered with; delete it"
        )


class SafeReader(FileSystemReader):
    """DCP's reader of a local folder, with an unpickler that knows only DCP's own classes.

    Raises:
        pickle.UnpicklingError: ``.metadata`` asks for anything else. Nothing of it has run.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        body = Path(str(self._get_metadata_path(kwargs.get("rank")))).read_bytes()
        metadata: Metadata = _Unpickler(io.BytesIO(body)).load()
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class PlainWriter(FileSystemWriter):
    """DCP's writer of a local folder. Its ``.metadata`` names neither the folder nor the save: the same state, the same bytes.

    Optimizer state, two thirds of a checkpoint, has files of its own, so that who wants the model need not fetch it.
    """

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        files: queue.Queue[Any] = queue.Queue()
        for kind in ("", OPTIMIZER):
            items = [item for item in plan.items if item.index.fqn.startswith(f"{OPTIMIZER}.") == bool(kind)]
            if items:
                name = f"{kind}{plan.storage_data.prefix}0{DEFAULT_SUFFIX}"
                files.put((self.fs.concat_path(self.path, name), name, items))
        return self._write_data(planner, files)

    def storage_meta(self) -> None:
        return None


class SafePlanner(DefaultLoadPlanner):
    """DCP's planner, which reads non-tensor entries with ``weights_only=True``."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        clean = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), clean)
        clean.seek(0)
        super().load_bytes(read_item, clean)


def tensors(folder: Path, wanted: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """Load some tensors of a verified local folder, whole and in the given types, with no more memory than they take.

    DCP itself would copy each stored piece into a tensor made before; here a piece that is a whole tensor is that tensor, and the
    largest come first, while the room of the others is still free.
    """
    reader = SafeReader(str(folder))
    metadata = reader.read_metadata()
    entries = {name: _entry(metadata, name) for name in wanted}
    found: dict[str, Tensor] = {}
    for name, entry in sorted(entries.items(), key=lambda item: -item[1].size.numel()):
        for chunk, piece in _pieces(reader, metadata, name):
            if piece.shape == entry.size:
                found[name] = piece.to(wanted[name])
                continue
            whole = found.setdefault(name, torch.empty(entry.size, dtype=wanted[name]))
            whole[tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))] = piece
    return found


def _entry(metadata: Metadata, name: str) -> TensorStorageMetadata:
    entry = metadata.state_dict_metadata[name]
    if not isinstance(entry, TensorStorageMetadata):
        raise TypeError(f"{name} is not a tensor in this checkpoint")
    return entry


def _pieces(reader: FileSystemReader, metadata: Metadata, name: str) -> Iterator[tuple[ChunkStorageMetadata, Tensor]]:
    for chunk in _entry(metadata, name).chunks:
        with _stored(reader, metadata, name, chunk) as stream:
            yield chunk, torch.load(stream, map_location="cpu", weights_only=True)


@contextmanager
def _stored(reader: FileSystemReader, metadata: Metadata, name: str, chunk: ChunkStorageMetadata) -> Iterator[Any]:
    """The bytes of one stored piece, as a file."""
    where = metadata.storage_data[MetadataIndex(name, chunk.offsets)]
    with (Path(str(reader.path)) / where.relative_path).open("rb") as file:
        yield reader._slice_file(file, where)


def stored_alike(folder: Path, one: str, other: str) -> bool:
    """Whether two tensors lie on disk in the same pieces with the same bytes (then they are equal; else they may be)."""
    reader = SafeReader(str(folder))
    metadata = reader.read_metadata()
    first, second = _entry(metadata, one), _entry(metadata, other)
    if first != second:
        return False
    for chunk in first.chunks:
        with _stored(reader, metadata, one, chunk) as left, _stored(reader, metadata, other, chunk) as right:
            while piece := left.read(BUFFER_BYTES):
                if piece != right.read(BUFFER_BYTES):
                    return False
    return True


def load(state: dict[str, Any], folder: Path, no_dist: bool) -> None:
    """``torch.distributed.checkpoint.load`` into ``state`` in place, from a verified local folder.

    DCP raises ``CheckpointException``, which is no ``Exception``.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # what ``no_dist`` asks for
        dcp_load(state, storage_reader=SafeReader(str(folder)), planner=SafePlanner(), no_dist=no_dist)


def written_by(name: str) -> int:
    """The rank that wrote a file of ours: ``__3_0.distcp`` and ``optimizer__3_0.distcp`` are rank 3's; rank 0 writes the rest."""
    _, marked, rank = name.partition("__")
    return int(rank.split("_")[0]) if marked else 0
