"""Warnings of the packages underneath that we have looked into and that say nothing about a run, one by one. All others show."""

import logging
import re
from typing import NamedTuple


class Known(NamedTuple):
    """One message of one logger; ``text`` is a regular expression for its beginning."""

    logger: str
    text: str
    reason: str


KNOWN = (
    Known(
        "transformers.configuration_utils",
        r"You are using a model of type `bard_vl` to instantiate a model of type ``",
        "AutoTokenizer reads a released folder's config without a class; its processor is a stock one",
    ),
    Known(
        "torch.utils.cpp_extension",
        r"No CUDA runtime is found",
        "a CUDA toolkit on a machine without a GPU; nothing is built with it",
    ),
    Known(
        "transformers.models.qwen3_vl.video_processing_qwen3_vl",
        r"Qwen3VL video processing does not apply the per-frame pixel cap",
        "training and decoding bound a video's pixels themselves",
    ),
    Known(
        "ray._private.worker",
        r"(Started a local Ray instance|Connected to Ray cluster|Connecting to existing Ray cluster|Calling ray\.init\(\) again)",
        "every stage would repeat that Ray has been started, or joined already",
    ),
    Known(
        "ray._private.authentication.authentication_token_setup",
        r"Token authentication is (dis|en)abled",
        "every stage would repeat it; the local Ray listens on loopback, and a cluster's is set up by its operator",
    ),
)


class _Filter(logging.Filter):
    def __init__(self, known: Known) -> None:
        super().__init__()
        self.text = re.compile(known.text)

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.text.match(record.getMessage())


def hush() -> None:
    """Keep the known ones out of this process's logs; once is enough."""
    for known in KNOWN:
        logger = logging.getLogger(known.logger)
        if not any(isinstance(old, _Filter) and old.text.pattern == known.text for old in logger.filters):
            logger.addFilter(_Filter(known))
