"""A stage's code cannot change without its version, and the version is in every key."""

import json

import pytest

from bard_core.config import fingerprints

SOURCE = "def rate(step: int) -> float:\n    return 0.5 * step\n"


def test_code_that_decides_numbers_changes_with_its_version() -> None:
    found = fingerprints.unraised(json.loads(fingerprints.RECORD.read_text(encoding="utf-8")), fingerprints.current())
    assert not found, (
        f"{fingerprints.words(found)}\nRaise them in {fingerprints.NUMBERS_OF} where a number changed, then run: make versions"
    )


def test_the_record_is_of_this_code() -> None:
    recorded = json.loads(fingerprints.RECORD.read_text(encoding="utf-8"))
    assert recorded == fingerprints.current(), "run: make versions"


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ('"""Words."""\n# more\ndef rate(step: int) -> float:\n    """Half."""\n    return (0.5\n        * step)\n', True),
        ("def rate(step: int) -> float:\n    return 0.25 * step\n", False),
        ("def rate(step: int) -> float:\n    return 0.5 + step\n", False),
    ],
)
def test_only_what_runs_counts(other: str, same: bool) -> None:
    assert (fingerprints.fingerprint(SOURCE) == fingerprints.fingerprint(other)) == same


def test_a_change_names_the_stages_that_it_reaches_until_their_versions_rise() -> None:
    before = fingerprints.current()
    now = {"versions": dict(before["versions"]), "modules": {**before["modules"], "bard_core/decoding/engine.py": "changed"}}
    assert set(fingerprints.unraised(before, now)) == {"answers", "evaluate"} | {
        stage for stage in fingerprints.ROOTS if "bard_core/decoding/engine.py" in fingerprints.modules_of(stage)
    }
    assert "answers: bard_core/decoding/engine.py changed" in fingerprints.words(fingerprints.unraised(before, now))
    now["versions"]["answers"] += 1
    assert "answers" not in fingerprints.unraised(before, now) and "evaluate" in fingerprints.unraised(before, now)


@pytest.mark.parametrize(
    ("stage", "inside", "outside"),
    [
        ("pbm", "bard_core/diffusion/losses.py", "bard_core/training/teacher.py"),
        ("swd", "bard_core/training/teacher.py", "bard_core/decoding/engine.py"),
        ("prepare", "bard_core/data/tokenize.py", "bard_core/training/loop.py"),
        ("evaluate", "bard_core/evaluation/lmms_score.py", "bard_core/training/loop.py"),
        ("consolidate", "bard_core/training/checkpoints/dcp.py", "bard_core/store/storage.py"),
    ],
)
def test_a_stage_is_what_its_code_imports(stage: str, inside: str, outside: str) -> None:
    assert inside in fingerprints.modules_of(stage) and outside not in fingerprints.modules_of(stage)
