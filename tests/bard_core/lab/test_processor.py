"""The lab processor is a stock Hugging Face processor: special tokens, round trip, one cell is one visual token."""

from pathlib import Path

from PIL import Image
from transformers import AutoProcessor, Qwen3VLProcessor

from bard_core.diffusion.names import MASK_TOKEN
from bard_core.lab.processor import SPECIAL_TOKENS, VOCAB_SIZE, build_lab_processor

PROMPT = [
    {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (96, 96))}, {"type": "text", "text": "Read K B."}]}
]


def test_round_trip_keeps_every_behaviour(tmp_path: Path) -> None:
    built = build_lab_processor()
    built.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, Qwen3VLProcessor)
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "return_tensors": "pt"}
    first, second = (processor.apply_chat_template(PROMPT, **options) for processor in (built, loaded))
    assert first.keys() == second.keys() >= {"input_ids", "pixel_values", "image_grid_thw", "mm_token_type_ids"}
    assert all((first[key] == second[key]).all() for key in first)
    assert first["image_grid_thw"].tolist() == [[1, 6, 6]]  # not resized: 3 x 3 cells of 2 x 2 patches
    assert (first["input_ids"] == loaded.image_token_id).sum() == 9


def test_tokens() -> None:
    tokenizer = build_lab_processor().tokenizer
    assert len(tokenizer) <= VOCAB_SIZE
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.mask_token) == ("<|im_end|>", "<|endoftext|>", MASK_TOKEN)
    assert all(len(tokenizer.encode(token)) == 1 for token in (*SPECIAL_TOKENS, "<think>", "</think>"))
    text = "<think>K=7 B=2</think>sum=09; max=7 für 日本\n"
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    assert tokenizer.tokenize("sum=19") == ["sum", "=", "1", "9"]
    assert build_lab_processor().tokenizer.get_vocab() == tokenizer.get_vocab()
