"""How far something is: a bar on a terminal; in a file or a pipe, a plain line every half a minute and one at the end."""

import sys
from typing import Any

from tqdm import tqdm

LINE_S = 30.0  # between two plain lines
LINE = "{desc}: {n_fmt}/{total_fmt} {unit}, {elapsed} gone, about {remaining} left{postfix}"


class Bar(tqdm):  # type: ignore[misc]
    """tqdm's bar, by tqdm's arguments. ``file`` is standard error unless it is given."""

    disable: bool

    def __init__(self, *given: Any, **options: Any) -> None:
        self.plain = not (options.get("file") or sys.stderr).isatty()
        self._told: float | None = None
        super().__init__(*given, **options, **({"mininterval": LINE_S, "maxinterval": LINE_S} if self.plain else {}))

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        if not self.plain:
            return super().display(msg, pos)
        if self.n not in (self.initial, self._told):
            self._told = self.n
            self.fp.write(self.format_meter(**{**self.format_dict, "bar_format": LINE}).rstrip() + "\n")
            self.fp.flush()
        return True

    def clear(self, nolock: bool = False) -> None:
        if not self.plain:
            super().clear(nolock)

    def close(self) -> None:
        if not self.plain:
            super().close()
        elif not self.disable:
            self.display()
            self.disable = True
            self._decr_instances(self)
