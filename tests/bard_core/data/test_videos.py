"""Videos: the tokens, grids, positions and pixels that transformers' own processor gives; then prepared and trained on."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers.video_utils import read_video_pyav

from bard_core.config.sections.data import DataConfig, LabWorldConfig
from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.source import LabModelConfig
from bard_core.config.sections.train import OptimizerConfig, TrainConfig
from bard_core.config.sources import RawSource
from bard_core.data.batches import BatchSpec, collate
from bard_core.data.examples import Example, Positions
from bard_core.data.feed import Walk
from bard_core.data.messages import convert
from bard_core.data.pictures import decode, scale
from bard_core.data.prepare import prepare
from bard_core.data.reader import Reader
from bard_core.data.refusal import RowRefused
from bard_core.data.tokenize import SampleTokenizer, load_processor
from bard_core.data.videos import frames_of, joined
from bard_core.lab.model import build_lab_model
from bard_core.models.attention import Patches, dense_mask, hidden_states
from bard_core.training.spec import StageSpec, run_of
from bard_core.training.stage import prepare_base, run_stage

LAB = {"lab": LabWorldConfig(train_images=1, eval_images=1)}
TINY = LabModelConfig(
    hidden_size=32, layers=1, heads=2, kv_heads=1, head_dim=16, intermediate_size=32, vision_hidden_size=16, vision_heads=1
)
SOURCE = RawSource(name="v", schema_name="messages", uri="/raw")


@cache
def clip(frames: int = 40, fps: int = 10, height: int = 100, width: int = 140) -> bytes:
    """A bright bar that wanders over the picture, as an MP4 file."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures(frames, height, width):
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return buffer.getvalue()


def pictures(frames: int, height: int, width: int) -> Any:
    bars = np.zeros((frames, height, width, 3), np.uint8)
    for number, picture in enumerate(bars):
        picture[:, 3 * number % width :][:, :20] = 255
        picture[..., 1] = 5 * number
    return bars


def png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def row(*parts: Any) -> dict[str, Any]:
    shown = [part if isinstance(part, dict) else {"type": "video", "video": part} for part in parts]
    question = [*shown, {"type": "text", "text": "What?"}]
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "A bar."}]}


def processed(processor: Any, videos: list[tuple[Any, Any]], images: list[Any] | None = None) -> Any:
    """The processor's own inputs of the conversation that ``row`` makes: ``images`` first, then the (frames, metadata)."""
    shown = [{"type": "image"}] * len(images or []) + [{"type": "video"}] * len(videos)
    question = {"role": "user", "content": [*shown, {"type": "text", "text": "What?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A bar."}]}
    text = processor.apply_chat_template([question, answer], tokenize=False)
    frames = [torch.from_numpy(frames).permute(0, 3, 1, 2) for frames, _ in videos]
    about = {"video_metadata": [metadata for _, metadata in videos], "do_sample_frames": False}
    return processor(text=[text], images=images, videos=frames, **about, return_tensors="pt")


def as_images(processor: Any, ids: Any) -> list[int]:
    """Ids with a video's visual tokens as those of images."""
    return [processor.image_token_id if token == processor.video_token_id else token for token in ids[0].tolist()]


def grids_of(found: Any) -> list[list[int]]:
    """A video's grid by moments."""
    return [[1, high, wide] for moments, high, wide in found["video_grid_thw"].tolist() for _ in range(moments)]


@pytest.mark.parametrize(
    "options",
    [
        {"video_fps": 2.0},
        {"video_fps": 2.4},  # an odd number of frames
        {"video_frames": 6},
        {"video_fps": 9.0, "video_max_frames": 8},
        {"video_fps": 5.0, "video_max_pixels": 96 * 1024},
    ],
)
def test_tokens_grids_and_positions_are_the_processors(options: dict[str, Any]) -> None:
    processor = load_processor(DataConfig(**LAB, **options))
    tokenizer = SampleTokenizer(processor, 8192)
    clips = [clip(), clip(30, 15, 64, 200)]
    sample = convert(row(*({"type": "video", "video": data} for data in clips)), SOURCE, "v", see=tokenizer.see)
    (mine,) = tokenizer([sample])
    own = processor.video_processor
    asked = {"num_frames": own.num_frames} if own.num_frames else {"fps": own.fps}
    videos = [read_video_pyav(io.BytesIO(data), lambda metadata: own.sample_frames(metadata, **asked)) for data in clips]
    theirs = processed(processor, videos)
    assert not isinstance(mine, RowRefused) and mine.input_ids == as_images(processor, theirs["input_ids"])
    assert [list(grid) for grid in mine.image_grid_thw] == grids_of(theirs)
    model = build_lab_model(TINY, processor, 512, seed=0)
    expected, _ = model.model.get_rope_index(
        theirs["input_ids"], mm_token_type_ids=theirs["mm_token_type_ids"], video_grid_thw=theirs["video_grid_thw"]
    )
    positions = Positions(model.config)(torch.tensor(mine.input_ids), [list(grid) for grid in mine.image_grid_thw])
    assert torch.equal(positions, expected[:, 0])
    patches = scale(processor.image_processor, decode(processor.image_processor, sample.images, mine.image_grid_thw))
    difference = (patches - theirs["pixel_values_videos"]).abs()
    assert difference.mean() < 0.03  # stored as JPEG of quality 95


def test_frames_as_given_among_images_are_seen_to_the_bit_and_laid_out_as_decoded() -> None:
    """The hidden states of the training layout's clean part are those of the stock model on the processor's inputs."""
    processor = load_processor(DataConfig(**LAB))
    tokenizer = SampleTokenizer(processor, 8192)
    frames, picture = pictures(5, 90, 130), pictures(3, 64, 96)[2]
    part = {"type": "video", "video": [{"bytes": png(frame)} for frame in frames], "fps": 2.0}
    sample = convert(row({"type": "image", "image": {"bytes": png(picture)}}, part), SOURCE, "v", see=tokenizer.see)
    (mine,) = tokenizer([sample])
    metadata = {"total_num_frames": 5, "fps": 2.0, "frames_indices": [0, 1, 2, 3, 4]}
    theirs = processed(processor, [(frames, metadata)], [Image.fromarray(picture)])
    assert not isinstance(mine, RowRefused) and mine.input_ids == as_images(processor, theirs["input_ids"])
    grids = [list(grid) for grid in mine.image_grid_thw]
    patches = scale(processor.image_processor, decode(processor.image_processor, sample.images, grids))
    expected = torch.cat([theirs["pixel_values"], theirs["pixel_values_videos"]])
    assert torch.allclose(patches, expected, atol=1e-6)

    model = build_lab_model(TINY, processor, 512, seed=0).eval()
    ids = torch.tensor(mine.input_ids)
    laid = Example("v", ids, mine.turns, sample.images, grids, Positions(model.config)(ids, grids))
    spec = BatchSpec(4, NoiseConfig(), 7, 2, 0, torch.arange(10, 200))
    batch = collate([(laid, 0)], spec)
    with torch.no_grad():
        clean = hidden_states(
            model,
            batch.input_ids_BL,
            batch.position_ids_CBL,
            dense_mask(batch.table_BL, "causal"),
            Patches(patches, torch.tensor(grids)),
        )[:, : len(ids)]
        stock = model(**theirs).logits
        assert torch.allclose(model.lm_head(clean), stock, atol=1e-4)


def talk(path: Path, rows: list[dict[str, Any]]) -> RawSource:
    path.mkdir(exist_ok=True)
    (path / "0.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return RawSource(name="v", schema_name="messages", uri=str(path), on_bad_part="drop", compare="bytes")


def test_videos_are_prepared_and_trained_on(tmp_path: Path, bard_home: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(6):
        (raw / f"{number}.mp4").write_bytes(clip(20 + number, 10, 64, 64))
    (raw / "torn.mp4").write_bytes(clip()[:2000])
    rows = [row(f"{number}.mp4") for number in range(6)]
    bad = [row("torn.mp4"), row("../outside.mp4"), row("torn.mp4", "0.mp4")]
    config = DataConfig(sources=(talk(raw, [*rows, *bad]),), eval_fraction=0.3, max_refused=0.5)
    ref = prepare(config, str(tmp_path / "out"))
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["refused"] == {"path leads out of the root": 1, "video does not decode": 1}
    assert card["dropped_parts"] == {"video does not decode": 1}
    assert "images on both sides of the split" not in card["left_out"]  # a video is on one side as a whole
    example = Reader(ref, "train")[0]
    assert len(example.images) == len(example.grid_thw) == 2 and all(len(frames_of(data)) == 2 for data in example.images)
    assert Image.open(io.BytesIO(example.images[0])).size == (64, 64)
    train = TrainConfig(
        steps=2, batch_size=2, max_tokens_per_row=512, precision="float32", checkpoint_every=2,
        optimizer=OptimizerConfig(lr=1e-3, vision_lr=1e-3, warmup_steps=0), log_every=1,
    )  # fmt: skip
    spec = StageSpec(stage="source", dataset=ref, train=train, lab_model=TINY, clean_attention="causal")
    losses: list[float] = []
    run_stage(spec, prepare_base(spec, run_of(spec)), run_of(spec), lambda record: losses.append(record["loss"]))
    assert len(losses) == 2 and all(np.isfinite(losses))
    walk = Walk(Reader(ref, "train"), 0, Positions(build_lab_model(TINY, load_processor(config), 128, 0).config))
    assert walk[0][0].position_ids_CN.shape == (3, len(walk[0][0].input_ids_N))


@pytest.mark.parametrize(
    ("video", "words"),
    [
        (b"no video at all", "video does not decode"),
        (clip()[:3000], "video does not decode"),
        (clip(1), "video too short"),
        ({"type": "video", "video": [{"bytes": b"x"}] * 4}, "frames without fps"),
        (
            {"type": "video", "video": [{"bytes": png(pictures(1, s, s)[0])} for s in (32, 48)], "fps": 1},
            "frames of different sizes",
        ),
        (7.5, "video bytes missing"),
    ],
)
def test_what_is_no_video_is_refused_by_name(video: Any, words: str) -> None:
    tokenizer = SampleTokenizer(load_processor(DataConfig(**LAB)), 8192)
    with pytest.raises(RowRefused, match=words):
        convert(row(video), SOURCE, "v", see=tokenizer.see)


def test_placeholders_and_late_turns_take_their_videos_along() -> None:
    tokenizer = SampleTokenizer(load_processor(DataConfig(**LAB)), 150)
    turns = [("user", "<video>What?"), ("assistant", "A bar."), ("user", "And <video> here?"), ("assistant", "A bar.")]
    raw = {"messages": [{"role": role, "content": text} for role, text in turns], "videos": [clip(), clip(30, 15, 64, 200)]}
    sample = convert(raw, SOURCE, "v", see=tokenizer.see)
    (cut,) = tokenizer([sample])
    assert not isinstance(cut, RowRefused) and cut.was_cut and len(cut.turns) == 1
    assert len(cut.sample.images) == len(cut.image_grid_thw) == 4 < len(sample.images)
    with pytest.raises(RowRefused, match="video placeholders do not match: 2 <video> for 1 videos"):
        convert({**raw, "videos": [clip()]}, SOURCE, "v", see=tokenizer.see)


def test_a_moment_is_two_pictures_and_no_picture_is_taken_for_one() -> None:
    first, second = png(pictures(1, 32, 32)[0]), png(pictures(2, 32, 32)[1])
    assert frames_of(joined(first, second)) == (first, second) and frames_of(first) == (first,)
    disguised = {"type": "image", "image": {"bytes": joined(first, second)}}
    with pytest.raises(RowRefused, match="ends as a moment"):
        convert(row(disguised), SOURCE, "v")
