"""Adopt a pretrained model: bring it from a folder, S3 or the hub, and give it a mask token unless it has one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from bard_core.models.released import read_config
from bard_core.models.vlm import (
    BardSettings,
    add_mask_token,
    bard_settings,
    embedding_rows,
    known_mask_token,
    record_settings,
    settings_in,
)
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
        VocabularyError: its tokens are not the dataset's.
    """
    from transformers import AutoProcessor

    from bard_core.models.vlm import load

    with workshop.scratch("source") as scratch:
        place: str = model
        if not storage.is_local(model):
            folder = scratch / Path(model).name  # a released model says its block size there
            storage.download_tree(model, folder)
            place = str(folder)
        elif revision is not None and not Path(model).exists():
            from huggingface_hub import snapshot_download

            place = snapshot_download(model, revision=revision, ignore_patterns=list(NOT_NEEDED))
        processor = AutoProcessor.from_pretrained(processor_dir)
        check_vocabulary(place, processor.tokenizer, model)
        loaded = load(place, dtype="auto")
        settings = bard_settings(loaded)
        if settings.mask_token_id is None:
            settings = replace(settings, mask_token_id=_own_mask_token(place, loaded))
        if settings.mask_token_id is None:
            settings = replace(settings, mask_token_id=add_mask_token(loaded, processor.tokenizer))
        record_settings(loaded, replace(settings, system_prompt=system_prompt))
        loaded.save_pretrained(output_dir)
        processor.save_pretrained(output_dir)
    return output_dir


class VocabularyError(ValueError):
    """A model does not share the vocabulary of the data, or masks with one of its words."""


def check_vocabulary(folder: str | Path, tokenizer: Any, name: str) -> BardSettings:
    """See that a model reads the tokens that the dataset's ``tokenizer`` writes; so any two that do can learn from each other.

    Mask tokens may differ: each model masks with its own (``training.teacher``), but not with a word of the data. Returns what
    the model records.

    Raises:
        VocabularyError: it does not; names the first token that differs.
    """
    config = read_config(folder)
    settings, rows = settings_in(config), config.get_text_config(decoder=True).vocab_size
    words = {token: number for token, number in tokenizer.get_vocab().items() if number != known_mask_token(tokenizer)}
    if (own := _own_tokenizer(folder)) is not None:
        theirs = own.get_vocab()
        if differing := [token for token, number in words.items() if theirs.get(token) != number]:
            token = min(differing, key=words.__getitem__)
            raise VocabularyError(
                f"{name}: {len(differing)} of the data's {len(words)} tokens are others there, first {token!r}: {words[token]} "
                f"in data.processor, {theirs.get(token)} in the model; choose a model with the vocabulary of data.processor"
            )
    if (least := max(words.values()) + 1) > rows:
        raise VocabularyError(f"{name}: has {rows} embeddings, fewer than the {least} tokens of data.processor")
    if (word := next((token for token, number in words.items() if number == settings.mask_token_id), None)) is not None:
        raise VocabularyError(f"{name}: masks with token {settings.mask_token_id}, the word {word!r} in data.processor")
    return settings


def _own_tokenizer(place: str | Path) -> Any | None:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError):  # no tokenizer there
        return None


def _own_mask_token(place: str, model: Any) -> int | None:
    """The mask token of the tokenizer that came with the model, if it has an embedding."""
    own = _own_tokenizer(place)
    token = known_mask_token(own) if own is not None else None
    return token if token is not None and token < embedding_rows(model) else None
