"""Bars: drawn on a terminal, told in plain lines where there is none."""

import io

import pytest

from bard_core import progress
from bard_core.progress import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_redirected_stream_gets_whole_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with Bar(total=4, desc="answering", unit="sample", file=stream, leave=False) as bar:
        for _ in range(3):
            bar.update()
        bar.set_postfix_str("loss 0.5", refresh=False)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("answering: 3/4 sample, 00:00 gone, about") and line.endswith("left, loss 0.5")
    assert "\r" not in stream.getvalue() and bar not in Bar._instances
    monkeypatch.setattr(progress, "LINE_S", 0.0)
    often = io.StringIO()
    assert list(Bar([1, 2, 3], desc="timing", unit="prompt", file=often)) == [1, 2, 3]
    assert [line.split()[1] for line in often.getvalue().splitlines()] == ["1/3", "2/3", "3/3"]


def test_a_message_stands_between_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(total=2, desc="pbm-b4", unit="step") as bar:
        bar.update()
        bar.write("set aside")
    out, err = capsys.readouterr()
    assert out == "set aside\n" and err.count("\n") == 1 and "\r" not in err


def test_a_terminal_gets_a_bar_and_what_is_disabled_says_nothing() -> None:
    terminal, quiet = Terminal(), io.StringIO()
    with Bar(total=2, desc="prepare", file=terminal) as bar:
        bar.update()
    assert "\rprepare" in terminal.getvalue()
    with Bar(total=2, file=quiet, disable=True) as bar:
        bar.update()
    assert quiet.getvalue() == ""
