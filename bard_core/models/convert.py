"""Adopt a pretrained model: bring it from a folder, S3 or the hub, and give it a mask token unless it has one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from bard_core.models.vlm import add_mask_token, bard_settings, embedding_rows, known_mask_token, record_settings
from bard_core.store import storage, workshop

NOT_NEEDED = ("*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "original/*")  # the same weights in other formats


def adopt(model: str, revision: str | None, processor_dir: Path, output_dir: Path, system_prompt: str | None = None) -> Path:
    """Write ``output_dir``: the model in its own dtype with an embedding row for the mask token, and the dataset's processor.

    A mask token that the model records or its own tokenizer has is kept, and every weight with it. Else one is added.

    Args:
        model: folder, s3:// URI, or hub id at the commit ``revision``. processor_dir: the prepared dataset's processor.
        system_prompt: the prepared dataset's, to be recorded.

    Raises:
        OSError: there is no such model (from transformers). ValueError: see ``models.load``.
    """
    from transformers import AutoProcessor

    from bard_core.models.vlm import load

    with workshop.scratch("source") as scratch:
        place: str = model
        if model.startswith("s3://"):
            storage.download_tree(model, scratch / "model")
            place = str(scratch / "model")
        elif revision is not None and not Path(model).exists():
            from huggingface_hub import snapshot_download

            place = snapshot_download(model, revision=revision, ignore_patterns=list(NOT_NEEDED))
        loaded = load(place, dtype="auto")
        processor = AutoProcessor.from_pretrained(processor_dir)
        settings = bard_settings(loaded)
        if settings.mask_token_id is None:
            settings = replace(settings, mask_token_id=_own_mask_token(place, loaded))
        if settings.mask_token_id is None:
            settings = replace(settings, mask_token_id=add_mask_token(loaded, processor.tokenizer))
        record_settings(loaded, replace(settings, system_prompt=system_prompt))
        loaded.save_pretrained(output_dir)
        processor.save_pretrained(output_dir)
    return output_dir


def _own_mask_token(place: str, model: Any) -> int | None:
    """The mask token of the tokenizer that came with the model, if it has an embedding."""
    from transformers import AutoTokenizer

    try:
        token = known_mask_token(AutoTokenizer.from_pretrained(place))
    except (OSError, ValueError):  # no tokenizer there
        return None
    return token if token is not None and token < embedding_rows(model) else None
