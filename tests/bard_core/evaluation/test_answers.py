"""Answers that outlive a crash: found again by what was asked, never damaged, never a failure."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bard_core.evaluation import answers
from bard_core.evaluation.answers import Answer, AnswerStore, prompt_digest


def ask(*content: object) -> str:
    return prompt_digest([{"role": "user", "content": list(content)}])


def test_a_prompt_is_its_words_its_images_and_its_files(tmp_path: Path) -> None:
    words = {"type": "text", "text": "Which?"}
    (tmp_path / "v.mp4").write_bytes(b"one")
    video = {"type": "video", "video": str(tmp_path / "v.mp4")}
    red, blue = ({"type": "image", "image": Image.new("RGB", (8, 8), colour)} for colour in ("red", "blue"))
    wide = {"type": "image", "image": Image.new("RGB", (16, 4), "red")}
    array = {"type": "image", "image": np.zeros((2, 2, 3), np.uint8)}
    digests = [ask(words), ask(red, words), ask(words, red), ask(blue, words), ask(wide, words), ask(array), ask(video)]
    (tmp_path / "v.mp4").write_bytes(b"two")
    digests.append(ask(video))
    assert len(set(digests)) == len(digests)
    assert ask(red, words) == digests[1]
    with pytest.raises(TypeError, match="a list cannot be asked about"):
        ask({"type": "image", "image": [1]})


def test_answers_are_found_again_unless_they_failed_or_their_file_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AnswerStore(str(tmp_path))
    store.add([Answer("a", "1", 3, 2), Answer("b", "", 0, 0, "RuntimeError: no"), Answer("c", "2\n\u2028", 1, 1)])
    assert not list(tmp_path.iterdir()), "written in larger parts"
    store.flush()
    monkeypatch.setattr(answers, "FLUSH_EVERY_S", 0.0)
    store.add([Answer("d", "3", 1, 1)])
    found = AnswerStore(str(tmp_path))
    assert [found.get(key) for key in "abcd"] == [
        Answer("a", "1", 3, 2),
        None,
        Answer("c", "2\n\u2028", 1, 1),
        Answer("d", "3", 1, 1),
    ]
    for part in tmp_path.iterdir():
        part.write_text(part.read_text().replace("3", "9"))
    assert len(AnswerStore(str(tmp_path))) == 0
