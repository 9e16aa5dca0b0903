"""Messages to token ids, spans of assistant turns, image grids and lengths, without touching a pixel.

The chat template is rendered, tokenised, and every image placeholder is repeated as often as its grid has visual tokens;
the grid follows from the image size by the resize arithmetic of transformers' Qwen2-VL image processor (which all of
Qwen2-VL, Qwen2.5-VL and Qwen3-VL use). The result is what the processor itself yields for the same messages.

A sample longer than the limits loses whole turns at its end, never a part of a supervised turn; one whose first turn does
not fit is refused. Both are counted by the caller. What cannot fit by its length in characters is not even tokenised.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bard_core.config.sections.data import DataConfig
from bard_core.data.messages import Sample
from bard_core.data.refusal import RowRefused
from bard_core.data.videos import VideoReader
from bard_core.diffusion.names import MASK_TOKEN, Learned
from bard_core.lab.processor import TOKEN_PX, build_lab_processor
from bard_core.models.turns import find_turns, turn_markers
from bard_core.models.vlm import known_mask_token

MAX_CHARACTERS_PER_TOKEN = 64  # text that must be more tokens than allowed, however it is tokenised in practice


@dataclass(frozen=True)
class Tokenized:
    """A sample ready to train on.

    ``input_ids``: the whole conversation, N tokens. ``turns``: [start, end) of each assistant turn, its end token included
    and its header excluded. ``image_grid_thw``: (1, height, width) in patches for each image. ``was_cut``: turns were lost.
    ``context``: how many of the first turns carry no loss.
    """

    sample: Sample
    input_ids: list[int]
    turns: list[tuple[int, int]]
    image_grid_thw: list[tuple[int, int, int]]
    num_visual_tokens: int
    was_cut: bool
    context: int = 0

    @property
    def learned_lengths(self) -> list[int]:
        """Tokens of each assistant turn that carries a loss, its end token included."""
        return [end - start for start, end in self.turns[self.context :]]


def load_processor(config: DataConfig) -> Any:
    """The processor that ``config.processor`` names, holding the mask token and the configured pixel limits.

    "lab" is built in code (its images may be as small as one visual token, so ``min_pixels`` does not apply to it);
    anything else goes through ``AutoProcessor.from_pretrained``.

    Raises:
        ValueError: the processor has no Qwen2-VL style image processor, whose sizes we can compute, or the lab's cells are
            not whole visual tokens.
    """
    if config.processor == "lab":
        if config.lab is not None and config.lab.cell_px % TOKEN_PX:
            raise ValueError(f"data.lab.cell_px is {config.lab.cell_px}; the lab processor needs a multiple of {TOKEN_PX} pixels")
        lab = build_lab_processor(config.max_pixels)
        _limit_videos(lab.video_processor, config)
        return lab
    from transformers import AutoProcessor

    auto: Any = AutoProcessor
    processor = auto.from_pretrained(config.processor, revision=config.processor_revision or "main")
    image_processor: Any = getattr(processor, "image_processor", None)
    if not hasattr(image_processor, "merge_size") or not hasattr(image_processor, "patch_size"):
        raise ValueError(
            f"processor {config.processor!r} has a {type(image_processor).__name__}; prepare computes lengths for Qwen2-VL "
            "style image processors (patch_size, merge_size): name a Qwen2-VL, Qwen2.5-VL or Qwen3-VL processor"
        )
    image_processor.size = {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}
    if getattr(processor, "video_processor", None) is not None:
        _limit_videos(processor.video_processor, config)
    if known_mask_token(processor.tokenizer) is None:
        processor.tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
    return processor


def _limit_videos(settings: Any, config: DataConfig) -> None:
    """Which frames of a video are seen, and how large: recorded with the processor, which then sees them so at inference."""
    settings.num_frames, settings.fps = config.video_frames, None if config.video_frames else config.video_fps
    settings.max_frames = config.video_max_frames
    settings.size = {"shortest_edge": settings.size["shortest_edge"], "longest_edge": config.video_max_pixels}
    settings.cap_pixels_per_frame = False


def image_grid(image_processor: Any, height: int, width: int) -> tuple[int, int, int]:
    """(1, height, width) in patches of an image of ``height`` x ``width`` pixels after the processor's resize."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    size, patch = image_processor.size, image_processor.patch_size
    factor = patch * image_processor.merge_size
    resized = smart_resize(height, width, factor, min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"])
    return 1, resized[0] // patch, resized[1] // patch


class SampleTokenizer:
    """Tokenises samples for one processor and its length limits in tokens: of a sample, and of one answer (None: the same).

    ``learned``: whether all answers of a conversation carry a loss, or its last one.
    """

    def __init__(self, processor: Any, max_tokens: int, max_answer_tokens: int | None = None, learned: Learned = "all") -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.max_tokens = max_tokens
        self.max_answer_tokens = max_answer_tokens or max_tokens
        self.learned = learned
        self.image_token_id = int(processor.image_token_id)
        self.see = VideoReader(processor)
        self.markers = turn_markers(processor)
        # plain added tokens such as <think> may occur in text; these may not: they would forge turns or images
        self.forbidden = sorted(set(self.tokenizer.all_special_tokens) | {MASK_TOKEN})

    def _render(self, messages: list[dict[str, Any]]) -> str:
        """The template's text; a video is written as its moments, each with the placeholder of an image.

        Raises:
            RowRefused: the template does not show every video.
        """
        text = str(self.processor.apply_chat_template(messages, tokenize=False))
        videos = [item for message in messages for item in message["content"] if item["type"] == "video"]
        if not videos:
            return text
        before, *rest = text.split(self.processor.video_token)
        if len(rest) != len(videos):
            raise RowRefused("video placeholders do not match", f"template shows {len(rest)} of {len(videos)} videos")
        return before + "".join(self._moments(item) + after for item, after in zip(videos, rest, strict=True))

    def _moments(self, item: dict[str, Any]) -> str:
        """What the processor writes for a video, its visual tokens aside."""
        from transformers.video_utils import VideoMetadata

        first, last = item["images"]
        merge = self.processor.image_processor.merge_size
        about = VideoMetadata(len(item["frames"]), item["fps"], frames_indices=list(item["frames"]))
        one_token_each = {"video_grid_thw": np.array([[last - first, merge, merge]]), "video_metadata": [about]}
        written: str = self.processor.replace_video_token(one_token_each, 0)
        return written.replace(self.processor.video_token, self.processor.image_token)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return ids

    def __call__(self, samples: Sequence[Sample]) -> list["Tokenized | RowRefused"]:
        """Tokenise a batch; each result stands at its sample's place and is a sample or the refusal of it."""
        readable = [self._readable(sample) for sample in samples]
        texts = [text for _, text in readable if text is not None]
        ids = iter(self._ids(texts) if texts else [])
        results: list[Tokenized | RowRefused] = []
        for (sample, _), given in zip(readable, samples, strict=True):
            try:
                if isinstance(sample, RowRefused):
                    raise sample
                done = self._finish(sample, next(ids))
                results.append(replace(done, was_cut=done.was_cut or len(sample.messages) < len(given.messages)))
            except RowRefused as refusal:
                results.append(refusal)
        return results

    def _readable(self, sample: Sample) -> tuple[Sample | RowRefused, str | None]:
        """The sample and its text without the turns that cannot fit, or the refusal of one that must not be tokenised."""
        try:
            shorter = self._shortened(sample)
            return shorter, self._render(shorter.messages)
        except RowRefused as refusal:
            return refusal, None

    def _shortened(self, sample: Sample) -> Sample:
        length, fitting = 0, 0
        for number, message in enumerate(sample.messages, 1):
            length += sum(len(item["text"]) for item in message["content"] if item["type"] == "text")
            if length > MAX_CHARACTERS_PER_TOKEN * self.max_tokens:
                break
            fitting = number if message["role"] == "assistant" else fitting
        if not fitting:
            raise RowRefused("first turn too long", f"more than {MAX_CHARACTERS_PER_TOKEN} x {self.max_tokens} characters")
        sample = sample if fitting == len(sample.messages) else _first(sample, fitting)
        if token := self._forged(sample):
            raise RowRefused("special token in text", token)
        return sample

    def _forged(self, sample: Sample) -> str:
        """The first special token written out in the sample's texts; empty if there is none."""
        texts = [item["text"] for message in sample.messages for item in message["content"] if item["type"] == "text"]
        return next((token for token in self.forbidden for text in texts if token in text), "")

    def _finish(self, sample: Sample, ids: list[int]) -> Tokenized:
        """Expand the images, find the turns, and cut to the limit."""
        merged = self.processor.image_processor.merge_size**2
        grids = [
            sample.grids.get(number) or image_grid(self.processor.image_processor, *size)
            for number, size in enumerate(sample.image_sizes)
        ]
        visual = [grid[1] * grid[2] // merged for grid in grids]
        input_ids = self._expand(ids, visual)
        turns = find_turns(input_ids, self.markers)
        expected = sum(message["role"] == "assistant" for message in sample.messages)
        if len(turns) != expected:
            raise RowRefused("chat template loses turns", f"found {len(turns)} assistant turns of {expected}")
        if len(input_ids) > self.max_tokens or any(end - start > self.max_answer_tokens for start, end in turns):
            return self._cut(sample, len(input_ids), turns)
        context = len(turns) - 1 if self.learned == "last" else 0
        return Tokenized(sample, input_ids, turns, grids, sum(visual), was_cut=False, context=context)

    def _expand(self, ids: list[int], visual: list[int]) -> list[int]:
        """Repeat the i-th image placeholder ``visual[i]`` times."""
        places = [index for index, token in enumerate(ids) if token == self.image_token_id]
        if len(places) != len(visual):
            raise RowRefused("image placeholders do not match", f"template shows {len(places)} of {len(visual)} images")
        expanded: list[int] = []
        start = 0
        for place, count in zip(places, visual, strict=True):
            expanded += ids[start:place]
            expanded += [self.image_token_id] * count
            start = place + 1
        return expanded + ids[start:]

    def _cut(self, sample: Sample, length: int, turns: list[tuple[int, int]]) -> Tokenized:
        """Keep the turns that fit, with the images they show; refuse the sample if not even the first does."""
        tail = length - turns[-1][1]
        fits = [end + tail <= self.max_tokens and end - start <= self.max_answer_tokens for start, end in turns]
        kept = fits.index(False)
        if kept == 0:
            start, end = turns[0]
            limits = f"max_tokens is {self.max_tokens}, max_answer_tokens {self.max_answer_tokens}"
            raise RowRefused("first turn too long", f"{end - start} tokens up to token {end}; {limits}")
        answers = [index for index, message in enumerate(sample.messages) if message["role"] == "assistant"]
        shorter = _first(sample, answers[kept - 1] + 1)
        done = self._finish(shorter, self._ids([self._render(shorter.messages)])[0])
        return replace(done, was_cut=True)


def _first(sample: Sample, count: int) -> Sample:
    """The first ``count`` messages of a sample, with the images they show."""
    messages = sample.messages[:count]
    items = [item for message in messages for item in message["content"]]
    shown = sum((item["type"] == "image") + len(range(*item.get("images", (0, 0)))) for item in items)
    return replace(
        sample,
        messages=messages,
        images=sample.images[:shown],
        image_sizes=sample.image_sizes[:shown],
        looks=sample.looks[:shown],
    )
