"""Later turns: a prompt's blocks start anew where training's did, so what is decoded is what was trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bard_core.config.sections.noise import NoiseConfig
from bard_core.data.batches import BatchSpec, collate
from bard_core.data.examples import Example, attach_positions
from bard_core.decoding import generate
from bard_core.decoding.body import Body
from bard_core.decoding.cache import new_cache
from bard_core.decoding.prompt import read_prompt
from bard_core.lab.processor import build_lab_processor
from bard_core.models import BardSettings, bard_settings, record_settings
from bard_core.models.attention import dense_mask, encode_images, hidden_states
from bard_core.models.turns import TurnMarkers, find_turns, recorded_markers, turn_markers, turns_of_prompt

from .families import EOS, IMAGE, MASK, build

HEADER, BLOCK = (491, 492), 4
MARKERS = TurnMarkers(HEADER, EOS)


def conversation(answers: list[int]) -> Tensor:
    """Ids of a conversation with an image of 6 tokens in every turn; ``answers``: tokens of each answer, its end included."""
    ids: list[int] = []
    for turn, length in enumerate(answers):
        ids += [7 + turn, 8, *[IMAGE] * 6, 9, *HEADER, *range(20 + turn, 20 + turn + length - 1), EOS, 10]
    return torch.tensor(ids[:-1])


def images_of(turns: int) -> dict[str, Tensor]:
    pixels = torch.randn(turns * 24, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(turns))
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 6]] * turns)}


ROWS = [[5, 7, 10], [6, 9], [3]]  # unequal numbers of turns; no answer but the first fills its blocks


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def model(request: Any) -> Any:
    model, _ = build(request.param)
    record_settings(model, BardSettings(BLOCK, MASK, prefix_blocks="turns", turn_start=HEADER, turn_end=EOS))
    return model


def trained_logits(model: Any, answers: list[int], clean_attention: Any) -> tuple[Tensor, Tensor]:
    """Noisy ids of the last turn, and training's logits there."""
    ids = conversation(answers)
    visual = images_of(len(answers))
    example = Example("e", ids, find_turns(ids.tolist(), MARKERS), [], visual["image_grid_thw"].tolist())
    assert len(example.turns) == len(answers)
    attach_positions([example], model)
    batch = collate([(example, 0)], BatchSpec(BLOCK, NoiseConfig(), MASK, EOS, 0, replacements_W=torch.arange(1, 490)))
    mask = dense_mask(batch.table_BL, clean_attention)
    images = encode_images(model, visual["pixel_values"], visual["image_grid_thw"])
    last = -(-answers[-1] // BLOCK) * BLOCK
    hidden = hidden_states(model, batch.input_ids_BL, batch.position_ids_CBL, mask, images)
    return batch.input_ids_BL[0, -last:], model.lm_head(hidden[0, -last:])


def prompts(rows: list[list[int]], pad_left: bool) -> dict[str, Tensor]:
    """The rows up to their last answers, padded, all images behind one another."""
    parts = [conversation(answers)[: -answers[-1]] for answers in rows]
    width = max(len(part) for part in parts)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for row, part in enumerate(parts):
        place = slice(width - len(part), None) if pad_left else slice(len(part))
        ids[row, place], mask[row, place] = part, 1
    visual = [images_of(len(answers)) for answers in rows]
    joined = {name: torch.cat([one[name] for one in visual]) for name in visual[0]}
    return {"input_ids": ids, "attention_mask": mask, **joined}


@pytest.mark.parametrize("rides", [False, True], ids=["alone", "riding"])
@pytest.mark.parametrize("clean_attention", ["block", "causal"])
@torch.no_grad()
def test_trained_is_decoded(model: Any, clean_attention: Any, rides: bool) -> None:
    """Every noisy block of the last turn of three rows in one batch, the first also where it rides with the prefill."""
    trained = [trained_logits(model, answers, clean_attention) for answers in ROWS]
    prompt = read_prompt(model, prompts(ROWS, pad_left=True))
    body = Body(model, new_cache(model, prompt.input_ids_BL.shape[1] + 4 * BLOCK), clean_attention)
    noisy = torch.stack([ids[:BLOCK] for ids, _ in trained])
    hidden = body.prefill(prompt, BLOCK, noisy if rides else None)
    if rides:
        body.cache.crop(-BLOCK)
    body.look_past(prompt.pads)
    longest = max(len(ids) for ids, _ in trained) // BLOCK
    for block in range(longest):
        place = slice(block * BLOCK, (block + 1) * BLOCK)
        some = [row for row, (ids, _) in enumerate(trained) if len(ids) >= (block + 1) * BLOCK]
        noisy = torch.stack([ids[place] if row in some else torch.full((BLOCK,), MASK) for row, (ids, _) in enumerate(trained)])
        positions = prompt.next_position_B[:, None] + torch.arange(block * BLOCK, (block + 1) * BLOCK)
        if block or not rides:
            hidden = body(noisy, positions)
            body.cache.crop(-BLOCK)
        for row in some:
            decoded = body.logits(hidden[row, -BLOCK:])
            assert torch.allclose(decoded, trained[row][1][place], atol=2e-5)
        clean = [torch.nn.functional.pad(conversation(answers)[-answers[-1] :], (0, 64), value=EOS)[place] for answers in ROWS]
        body(torch.stack(clean), positions, clean=BLOCK)


def test_a_row_alone_is_the_row_in_a_batch(model: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 10, "confidence_threshold": 0.4, "eos_token_id": [EOS]}
    alone = [generate(model, prompts([answers], True), **options).sequences[0].tolist() for answers in ROWS]
    for pad_left in (True, False):
        together = generate(model, prompts(ROWS, pad_left), **options)
        for row, (ids, stats) in enumerate(zip(together.sequences.tolist(), together.stats.rows, strict=True)):
            assert ids[: stats.real_tokens] == alone[row]


def test_uniform_blocks_are_others(model: Any) -> None:
    """Or the equality above would prove nothing; with one turn both are the same."""
    turns = bard_settings(model)
    uniform = BardSettings(BLOCK, MASK)
    masks = []
    for settings in (turns, uniform):
        record_settings(model, settings)
        masks.append([read_prompt(model, prompts([answers], True)).mask(BLOCK, "block") for answers in ROWS])
    record_settings(model, turns)
    assert [torch.equal(one, other) for one, other in zip(*masks, strict=True)] == [False, False, True]


def test_a_turn_that_the_prompt_leaves_open() -> None:
    ids = [1, 2, *HEADER, 5, 6, EOS, 3, *HEADER]
    assert turns_of_prompt(ids, MARKERS) == find_turns(ids, MARKERS) == [(4, 7)]
    assert turns_of_prompt([*ids, 7, 8], MARKERS) == [(4, 7), (10, 12)]
    assert find_turns([*ids, 7, 8], MARKERS) == [(4, 7)]
    assert turns_of_prompt([HEADER[0], 1, HEADER[1]], MARKERS) == []


def test_markers_without_their_tokens_are_named(model: Any) -> None:
    turns = bard_settings(model)
    record_settings(model, BardSettings(BLOCK, MASK, prefix_blocks="turns"))
    with pytest.raises(ValueError, match="turn_markers"):
        generate(model, prompts([[3]], True))
    record_settings(model, turns)


def test_markers_come_from_the_chat_template(tmp_path: Path) -> None:
    processor = build_lab_processor()
    processor.save_pretrained(tmp_path)
    markers = turn_markers(processor)
    recorded = recorded_markers(tmp_path)
    assert recorded == {"prefix_blocks": "turns", "turn_start": list(markers.header), "turn_end": markers.end}
    chat = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in (("user", "A"), ("assistant", "B")) * 2]
    ids = processor.tokenizer(processor.apply_chat_template(chat, tokenize=False))["input_ids"]
    said = [processor.tokenizer.decode(ids[start:end]) for start, end in find_turns(ids, markers)]
    assert said == ["B<|im_end|>", "B<|im_end|>"]
    assert recorded_markers(tmp_path / "elsewhere") == {}


def test_folders_that_record_no_turns_load(model: Any) -> None:
    before = bard_settings(model)
    model.config.bard = {"block_size": 8, "mask_token_id": MASK, "clean_attention": "causal"}
    assert bard_settings(model) == BardSettings(8, MASK, "causal", prefix_blocks="uniform")
    record_settings(model, before)
    assert bard_settings(model) == before
