"""Where a response ends: at its first end token, where a stop string is complete, or at the cap of new tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Detokenize = Callable[[list[int]], str]


@dataclass(frozen=True)
class Ending:
    """``detokenize`` turns ids into text, special tokens included; needed only where there are ``stop_strings``."""

    eos_token_ids: tuple[int, ...]
    max_new_tokens: int
    stop_strings: tuple[str, ...] = ()
    detokenize: Detokenize | None = None

    def cut(self, so_far: list[int], new: Sequence[int]) -> tuple[list[int], bool]:
        """The part of ``new`` that still belongs to the response ``so_far``, and whether the response ends with it.

        The end token and the token that completes a stop string belong to the response, as in Hugging Face ``generate``.
        """
        kept = list(new[: self.max_new_tokens - len(so_far)])
        end = next((i + 1 for i, token in enumerate(kept) if token in self.eos_token_ids), None)
        kept = kept[:end]
        stop = self._stop(so_far, kept)
        kept = kept[:stop]
        return kept, end is not None or stop is not None or len(so_far) + len(kept) == self.max_new_tokens

    def _stop(self, so_far: list[int], new: list[int]) -> int | None:
        """How many of the new tokens it takes to complete a stop string; None: they do not."""
        if not self.stop_strings or not self._stopped(so_far + new):
            return None
        return next(count for count in range(1, len(new) + 1) if self._stopped(so_far + new[:count]))

    def _stopped(self, tokens: list[int]) -> bool:
        assert self.detokenize is not None
        text = self.detokenize(tokens)
        return any(stop in text for stop in self.stop_strings)
