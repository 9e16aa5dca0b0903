"""Adopt a pretrained model: bring it from a folder, S3 or the hub, and give it the mask token."""

from pathlib import Path

from bard_core.models.vlm import BardSettings, add_mask_token, record_settings
from bard_core.store import storage


def adopt(model: str, revision: str | None, processor_dir: Path, output_dir: Path, system_prompt: str | None = None) -> Path:
    """Write ``output_dir``: the model with an embedding row for the processor's mask token, and that processor.

    Args:
        model: folder, s3:// URI, or hub id (with ``revision`` pinned). processor_dir: the prepared dataset's processor.
        system_prompt: the prepared dataset's, to be recorded.

    Raises:
        OSError: there is no such model (from transformers). ValueError: see ``models.load``.
    """
    import torch
    from transformers import AutoProcessor

    from bard_core.models.vlm import load

    with storage.scratch("source") as scratch:
        place: str = model
        if model.startswith("s3://"):
            storage.download_tree(model, scratch / "model")
            place = str(scratch / "model")
        elif revision is not None and not Path(model).exists():
            from huggingface_hub import snapshot_download

            place = snapshot_download(model, revision=revision)
        loaded = load(place, dtype=torch.bfloat16)
        processor = AutoProcessor.from_pretrained(processor_dir)
        mask_id = add_mask_token(loaded, processor.tokenizer)
        record_settings(loaded, BardSettings(block_size=1, mask_token_id=mask_id, system_prompt=system_prompt))
        loaded.save_pretrained(output_dir)
        processor.save_pretrained(output_dir)
    return output_dir
