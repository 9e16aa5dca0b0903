"""What doctor says of one thing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """``mend`` is empty where nothing is wrong."""

    name: str
    found: str
    mend: str = ""
