"""How a configuration names a model: a stage of its own pipeline, or a place where one is.

pbm-b4                                  what this pipeline's stage makes
/models/mine, s3://bucket/models/mine   a folder of ours, of the paper's release, or stock
owner/name, owner/name@revision         a hub id; without a revision, `main` as it is now
models:/bard@champion, models:/bard/3   a registered model, by alias or version
"""

import re
from typing import Annotated

from pydantic import AfterValidator

STAGE = re.compile(r"source|pbm-b(\d+)")
REGISTERED = re.compile(r"models:/([^/@]+)(?:@(.+)|/(\d+))")
HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
RELEASED = re.compile(r"Bard-VL-B(\d+)-")  # the release says its block size in a folder's name alone
FORMS = "a folder (absolute), s3:// place, hub id (owner/name or owner/name@revision) or registered model (models:/name@alias)"


def is_stage(reference: str) -> bool:
    return STAGE.fullmatch(reference) is not None


def pbm_stage(*block_sizes: int) -> str:
    return f"pbm-b{'-'.join(map(str, block_sizes))}"


def block_size_of(reference: str) -> int | None:
    """The block size that a name tells; None where only the model itself does."""
    if found := STAGE.fullmatch(reference):
        return int(found[1] or 1)
    found = RELEASED.search(reference)
    return int(found[1]) if found else None


def hub_id(reference: str) -> tuple[str, str | None]:
    """A hub reference as (owner/name, revision)."""
    name, _, revision = reference.partition("@")
    return name, revision or None


def _place(reference: str) -> str:
    known = reference.startswith(("/", "~")) or HUB.fullmatch(reference) or REGISTERED.fullmatch(reference)
    if not known and (reference.startswith("models:") or "://" not in reference):
        raise ValueError(f"{reference!r} is not {FORMS}")
    return reference


def _reference(reference: str) -> str:
    if is_stage(reference):
        return reference
    try:
        return _place(reference)
    except ValueError as error:
        raise ValueError(f"{reference!r} is neither a stage (such as pbm-b4) nor {FORMS}") from error


ModelReference = Annotated[str, AfterValidator(_reference)]
ModelPlace = Annotated[str, AfterValidator(lambda value: value if value == "lab" else _place(value))]
