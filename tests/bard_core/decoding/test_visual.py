"""Images, several images and videos, through the lab's processor and a tiny random Qwen3-VL."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bard_core.config.sections.source import LabModelConfig
from bard_core.decoding import generate, generate_autoregressive
from bard_core.diffusion.names import MASK_TOKEN
from bard_core.lab.model import build_lab_model
from bard_core.lab.processor import build_lab_processor

TINY = LabModelConfig(
    hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate_size=32, vision_hidden_size=16, vision_heads=1
)
IMAGE, VIDEO = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_lab_processor()


@pytest.fixture(scope="module")
def seeing(processor: Any) -> Any:
    model = build_lab_model(TINY, processor, 128, seed=0).eval()
    with torch.no_grad():  # a head that answers with many tokens, so that equal answers mean something
        model.lm_head.weight.copy_(torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.fixture(scope="module")
def options(processor: Any) -> dict[str, Any]:
    mask_id = processor.tokenizer.convert_tokens_to_ids(MASK_TOKEN)
    return {"max_new_tokens": 11, "mask_token_id": mask_id, "eos_token_id": []}


def encode(processor: Any, texts: list[str], images: list[Any], videos: list[Any]) -> dict[str, Any]:
    return dict(
        processor(
            text=texts,
            images=images or None,
            videos=videos or None,
            return_tensors="pt",
            padding=True,
            videos_kwargs={"do_sample_frames": False},
        )
    )


@pytest.fixture(scope="module")
def prompts(processor: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A batch of a video, two images and a video, one image, and none; and the same prompts alone."""
    drawn = np.random.default_rng(0)
    short, long = (drawn.integers(0, 255, (frames, 64, 32, 3), dtype=np.uint8) for frames in (2, 4))
    first, second, third = (
        Image.fromarray(drawn.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in ((64, 96), (32, 32), (64, 32))
    )
    parts = [
        (VIDEO + "max?", [], [short]),
        (IMAGE + IMAGE + VIDEO + "sum of them all?", [first, second], [long]),
        (IMAGE + "A?", [third], []),
        ("no picture?", [], []),
    ]
    texts, images, videos = ([part[i] for part in parts] for i in range(3))
    batch = encode(processor, texts, [i for one in images for i in one], [v for one in videos for v in one])
    return batch, [encode(processor, [text], images, videos) for text, images, videos in parts]


@pytest.mark.parametrize("clean_attention", ["block", "causal"])
def test_batched_is_one_by_one_and_fused_is_paper(
    clean_attention: Any, seeing: Any, prompts: Any, options: dict[str, Any]
) -> None:
    batch, single = prompts
    settings = {"block_size": 4, "confidence_threshold": 0.3, "clean_attention": clean_attention, **options}
    together = generate(seeing, batch, **settings)
    alone = [generate(seeing, one, schedule="paper", **settings) for one in single]
    assert together.sequences.tolist() == [one.sequences[0].tolist() for one in alone]
    assert together.stats.forwards < sum(one.stats.forwards for one in alone)
    assert len({tuple(row) for row in together.sequences.tolist()}) == len(single)


def test_self_speculative_is_greedy_autoregression(seeing: Any, prompts: Any, options: dict[str, Any]) -> None:
    batch, single = prompts
    drafted = generate(seeing, batch, block_size=4, strategy="self_speculative", clean_attention="causal", **options)
    assert torch.equal(drafted.sequences, generate_autoregressive(seeing, batch, **options).sequences)
    for index, one in enumerate(single):
        assert drafted.sequences[index].tolist() == generate_autoregressive(seeing, one, **options).sequences[0].tolist()


def test_token_types_are_found_where_the_processor_gave_none(seeing: Any, prompts: Any, options: dict[str, Any]) -> None:
    batch = {name: value for name, value in prompts[0].items() if name != "mm_token_type_ids"}
    given, found = (generate(seeing, inputs, block_size=4, **options) for inputs in (prompts[0], batch))
    assert torch.equal(given.sequences, found.sequences)
    given, found = (generate_autoregressive(seeing, inputs, **options) for inputs in (prompts[0], batch))
    assert torch.equal(given.sequences, found.sequences)


@pytest.mark.parametrize("missing", ["pixel_values", "pixel_values_videos"])
def test_visual_tokens_without_pixels_are_an_error(missing: str, seeing: Any, prompts: Any, options: dict[str, Any]) -> None:
    """They would be read as text in silence."""
    batch = {name: value for name, value in prompts[0].items() if name != missing}
    with pytest.raises(ValueError, match=missing):
        generate(seeing, batch, block_size=4, **options)
    with pytest.raises(ValueError, match=missing):
        generate_autoregressive(seeing, batch, **options)
