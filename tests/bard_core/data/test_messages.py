"""Converters against rows in the exact public schemas, good and bad."""

import io
import json
import struct
import zlib
from typing import Any

import pytest
from PIL import Image, ImageFile

from bard_core.config.sources import RawSchema, RawSource
from bard_core.data.images import check_image, open_image
from bard_core.data.messages import Sample
from bard_core.data.messages import convert as convert_row
from bard_core.data.refusal import RowRefused


def convert(row: dict[str, Any], schema: RawSchema, sample_id: str, source: str, **options: Any) -> Sample:
    return convert_row(row, RawSource(name=source, schema_name=schema, uri="/raw", **options), sample_id)


def encode(width: int = 40, height: int = 20, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 50).convert("RGB").save(buffer, format=format, **options)
    return buffer.getvalue()


def cell(data: bytes | None) -> dict[str, Any]:
    return {"bytes": data, "path": "x.png"}


def turned(format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(40, 20, format, exif=exif)


def malformed_exif() -> bytes:
    """A JPEG to be turned, whose EXIF block cannot be written again: its image width is text."""
    entries = [(0x0112, 3, 1, struct.pack("<HH", 6, 0)), (0x0100, 2, 4, b"abc\0")]
    directory = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return encode(40, 20, "JPEG", exif=b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + directory + struct.pack("<I", 0))


def bomb(side: int) -> bytes:
    """A few dozen bytes that claim side x side pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"")]
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


A, B = encode(), encode(10, 30, "JPEG")


def texts_of(messages: list[dict[str, Any]]) -> list[Any]:
    return [[message["role"], *(item.get("text", item.get("image")) for item in message["content"])] for message in messages]


def test_finevision_multi_turn_with_two_images() -> None:
    row = {"images": [cell(A), cell(B)], "texts": [{"user": "Q1", "assistant": "A1"}, {"user": " Q2\n", "assistant": "A2 "}]}
    sample = convert(row, "finevision", "s/0/0", "s")
    assert texts_of(sample.messages) == [["user", 0, 1, "Q1"], ["assistant", "A1"], ["user", "Q2"], ["assistant", "A2"]]
    assert sample.images == [A, B] and sample.image_sizes == [(20, 40), (30, 10)]


def test_llava_onevision_places_the_image_where_it_is_named() -> None:
    turns = [("system", "Be brief."), ("human", "Look: <image>\nWhat?"), ("gpt", "This."), ("human", "Sure?"), ("gpt", "Yes.")]
    row = {"id": "7", "image": cell(A), "conversations": [{"from": name, "value": text} for name, text in turns]}
    assert texts_of(convert(row, "llava_onevision", "s/0/0", "s").messages) == [
        ["system", "Be brief."], ["user", "Look:", 0, "What?"], ["assistant", "This."], ["user", "Sure?"], ["assistant", "Yes."],
    ]  # fmt: skip


def test_mmfinereason_and_its_missing_opening_tag() -> None:
    row = {"question": "Q", "image": cell(A), "qwen3vl_235b_thinking_response": "why</think>\n4", "original_answer": "4"}
    assert texts_of(convert(row, "mmfinereason", "i", "s").messages) == [["user", 0, "Q"], ["assistant", "<think>why</think>\n4"]]


def test_text_only_rows_are_samples() -> None:
    sample = convert({"images": [], "texts": [{"user": "Q", "assistant": "A"}]}, "finevision", "i", "s")
    assert sample.images == [] and texts_of(sample.messages) == [["user", "Q"], ["assistant", "A"]]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_image_sizes_are_those_of_the_upright_image(format: str) -> None:
    data = turned(format)
    checked = check_image(data)
    assert (checked.height, checked.width) == (40, 20) == open_image(data).size[::-1]


def fine(images: list[Any], *turns: Any) -> tuple[RawSchema, dict[str, Any]]:
    return "finevision", {"images": images, "texts": list(turns)}


def llava(image: Any, *turns: tuple[Any, Any]) -> tuple[RawSchema, dict[str, Any]]:
    return "llava_onevision", {"id": "0", "image": image, "conversations": [{"from": a, "value": b} for a, b in turns]}


def reason(question: Any, response: Any) -> tuple[RawSchema, dict[str, Any]]:
    answer = {"qwen3vl_235b_thinking_response": response, "original_answer": "4"}
    return "mmfinereason", {"question": question, "image": cell(A), **answer}


TURN = {"user": "Q", "assistant": "A"}
BAD_ROWS = {
    "column missing": [("finevision", {"images": [cell(A)]}), reason(None, "A")],
    "malformed turn": [fine([cell(A)], {"user": "Q"}), fine([cell(A)], None)],
    "text missing": [fine([cell(A)], {"user": "Q", "assistant": None}), llava(cell(A), ("human", 3), ("gpt", "A"))],
    "empty question": [fine([cell(A)], {"user": " \n", "assistant": "A"}), llava(cell(A), ("human", "<image>"), ("gpt", "A"))],
    "empty answer": [fine([cell(A)], {"user": "Q", "assistant": ""})],
    "unknown speaker": [llava(cell(A), ("narrator", "Q"), ("gpt", "A"))],
    "turns do not alternate": [
        fine([cell(A)]), llava(cell(A)), llava(cell(A), ("human", "Q")), llava(cell(A), ("gpt", "A"), ("human", "Q")),
        llava(cell(A), ("human", "Q"), ("gpt", "A"), ("human", "Q")),
    ],
    "image placeholders do not match": [
        llava(None, ("human", "<image>\nQ"), ("gpt", "A")), llava(cell(A), ("human", "<image> <image> Q"), ("gpt", "A")),
    ],
    "image bytes missing": [fine([cell(None)], TURN), fine([None], TURN), fine([cell(b"")], TURN)],
    "image does not decode": [
        fine([cell(b"not an image")], TURN), fine([cell(A[:-400])], TURN), fine([cell(B[: len(B) // 2])], TURN),
        fine([cell(malformed_exif())], TURN),
    ],
    "image too large": [fine([cell(bomb(10_000))], TURN), fine([cell(bomb(20_000))], TURN)],
    "image too long and thin": [fine([cell(encode(500, 2))], TURN)],
    "thinking does not close": [reason("Q", "<think>on and on")],
}  # fmt: skip


@pytest.mark.parametrize(("reason", "case"), [(reason, case) for reason, cases in BAD_ROWS.items() for case in cases])
def test_bad_rows_are_refused_with_their_reason(
    reason: str, case: tuple[RawSchema, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as lmms-eval leaves it
    with pytest.raises(RowRefused) as refusal:
        convert(case[1], case[0], "i", "s")
    assert refusal.value.reason == reason


def chat(*messages: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in messages]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_the_papers_own_format_with_images_by_number_bytes_and_in_the_row() -> None:
    question = [
        {"type": "image", "image": 1},
        text("Look: "),
        {"type": "image", "image": {"bytes": A, "path": None}},
        text("What?"),
    ]
    row = {
        "messages": chat(("system", [text("Be brief.")]), ("user", question), ("assistant", "It.")),
        "images": [cell(A), cell(B)],
    }
    sample = convert(row, "messages", "i", "s")
    assert texts_of(sample.messages) == [["system", "Be brief."], ["user", 0, "Look:", 1, "What?"], ["assistant", "It."]]
    assert sample.images == [B, A]
    plain = {"messages": chat(("user", "<image>Q"), ("assistant", "A")), "images": [cell(A)]}
    assert texts_of(convert(plain, "messages", "i", "s").messages) == [["user", 0, "Q"], ["assistant", "A"]]
    as_json = {"messages": json.dumps(plain["messages"]), "images": [cell(A)]}
    assert convert(as_json, "messages", "i", "s") == convert(plain, "messages", "i", "s")
    arrow = {"type": "image", "text": None, "image": None}  # as a table has them: every key, and images in order
    unmarked = {
        "messages": chat(("user", [arrow, {**text("Q"), "image": None}]), ("assistant", [text("A")])),
        "images": [cell(A)],
    }
    assert texts_of(convert(unmarked, "messages", "i", "s").messages) == [["user", 0, "Q"], ["assistant", "A"]]


@pytest.mark.parametrize(
    ("reason", "row"),
    [
        ("unknown speaker", {"messages": chat(("narrator", "Q"))}),
        ("unknown part", {"messages": chat(("user", [{"type": "audio"}]), ("assistant", "A"))}),
        ("unknown part", {"messages": chat(("user", "Q"), ("assistant", [{"type": "image", "image": 0}]))}),
        ("image missing", {"messages": chat(("user", [{"type": "image", "image": 2}, text("Q")]), ("assistant", "A"))}),
        ("placeholder written out in a text", {"messages": chat(("user", [text("<image> Q")]), ("assistant", "A"))}),
        (
            "image bytes missing",
            {"messages": chat(("user", [{"type": "image", "image": "a.png"}, text("Q")]), ("assistant", "A"))},
        ),
        ("text is not Unicode", {"messages": chat(("user", "Q\ud800"), ("assistant", "A"))}),
        ("messages are not JSON", {"messages": "not a list"}),
    ],
)
def test_bad_rows_of_the_papers_format_are_refused_with_their_reason(reason: str, row: dict[str, Any]) -> None:
    with pytest.raises(RowRefused) as refusal:
        convert(row, "messages", "i", "s")
    assert refusal.value.reason == reason


def test_speakers_under_either_key_and_nulls_under_the_other() -> None:
    mixed = [
        {"from": "human", "value": "Q1", "role": None, "content": None},
        {"from": None, "value": None, "role": "assistant", "content": "A1"},
        {"role": "user", "content": "Q2"},
        {"from": "gpt", "value": "A2"},
    ]
    sample = convert({"conversations": mixed, "image": cell(A)}, "llava_onevision", "i", "s")
    assert texts_of(sample.messages) == [["user", 0, "Q1"], ["assistant", "A1"], ["user", "Q2"], ["assistant", "A2"]]


@pytest.mark.parametrize("thinking", [None, "  ", ...])
def test_mmfinereason_falls_back_to_the_original_answer(thinking: Any) -> None:
    row = {"question": "Q", "image": cell(A), "original_answer": "4"}
    row |= {} if thinking is ... else {"qwen3vl_235b_thinking_response": thinking}
    assert texts_of(convert(row, "mmfinereason", "i", "s").messages) == [["user", 0, "Q"], ["assistant", "4"]]


def test_placeholders_that_do_not_fit_follow_the_named_rule() -> None:
    row = llava(cell(A), ("human", "See <image> and <image>: Q"), ("gpt", "A"))[1]
    with pytest.raises(RowRefused, match="2 <image> for 1 images"):
        convert(row, "llava_onevision", "i", "s")
    sample = convert(row, "llava_onevision", "i", "s", place_images="first")
    assert texts_of(sample.messages) == [["user", 0, "See  and : Q"], ["assistant", "A"]]


def test_a_bad_part_may_be_dropped_counted_and_a_row_of_bad_images_never_becomes_a_question_without_any() -> None:
    turns = [{"user": "Q1 <image> or <image>", "assistant": "A1"}, {"user": "Q2", "assistant": " "}]
    row = {"images": [cell(A[:-400]), cell(B)], "texts": turns}
    sample = convert(row, "finevision", "i", "s", on_bad_part="drop")
    assert texts_of(sample.messages) == [["user", "Q1", "or", 0], ["assistant", "A1"]] and sample.images == [B]
    assert sample.dropped == ("empty last turn", "image does not decode")
    with pytest.raises(RowRefused, match="empty answer"):
        convert(row, "finevision", "i", "s")
    with pytest.raises(RowRefused, match="image does not decode"):
        convert({"images": [cell(A[:-400])], "texts": [TURN]}, "finevision", "i", "s", on_bad_part="drop")


def test_ratings_below_the_minimum_and_unrated_rows_are_refused() -> None:
    row = {"images": [], "texts": [TURN], "relevance_min": 3}
    assert convert(row, "finevision", "i", "s", min_ratings={"relevance_min": 3}).messages
    for rating in (2, None):
        with pytest.raises(RowRefused, match="relevance_min is"):
            convert({**row, "relevance_min": rating}, "finevision", "i", "s", min_ratings={"relevance_min": 3})
