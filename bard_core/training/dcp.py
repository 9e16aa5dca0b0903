"""Reading torch DCP folders without trusting their pickles: only the classes that DCP itself writes are unpickled.

A manifest proves that a folder is what was committed, not that whoever committed it was honest. ``.metadata`` is a pickle, and
so are the non-tensor entries of the shards; stock DCP would run whatever they ask for.
"""

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

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


class SafePlanner(DefaultLoadPlanner):
    """DCP's planner, which reads non-tensor entries with ``weights_only=True``."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        clean = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), clean)
        clean.seek(0)
        super().load_bytes(read_item, clean)


def load(state: dict[str, Any], folder: Path, no_dist: bool) -> None:
    """``torch.distributed.checkpoint.load`` into ``state`` in place, from a verified local folder.

    DCP raises ``CheckpointException``, which is no ``Exception``.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # what ``no_dist`` asks for
        dcp_load(state, storage_reader=SafeReader(str(folder)), planner=SafePlanner(), no_dist=no_dist)
