"""How a bad row leaves: refused with a reason that is counted, never silently dropped."""


class RowRefused(Exception):
    """A row that cannot become a sample. ``reason``: a short countable phrase; ``detail``: what exactly was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
