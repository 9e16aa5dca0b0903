"""What is trained on: raw shards, or those of the generated world."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from bard_core.config.bases import Based
from bard_core.config.sources import RawSource
from bard_core.config.strict import StrictModel, later
from bard_core.diffusion.names import Learned

LabTask = Literal["read", "count", "yesno", "sort", "add", "chart", "list"]


class LabWorldConfig(StrictModel):
    """The generated world: grids of labelled cells, questions that name cells, answers that list and then derive."""

    seed: int = Field(0, ge=0)
    rows: int = Field(3, ge=1, le=5, description="Grid rows; rows x columns <= alphabet")
    columns: int = Field(3, ge=1, le=5)
    alphabet: int = Field(26, ge=1, le=26, description="How many letters the world uses; an image shows distinct ones")
    digits: int = Field(10, ge=2, le=10, description="How many digits the world uses, from 0")
    cell_px: int = Field(32, ge=16, le=128, description="Side of a cell in pixels; 32 is one visual token of the lab model")
    min_cells: int = Field(3, ge=1, le=9, description="Fewest cells a question names")
    max_cells: int = Field(4, ge=1, le=9, description="Most cells a question names")
    turns_per_image: int = Field(4, ge=1, le=16, description="Question-answer turns of a multi-turn sample")
    train_images: int = Field(3000, ge=1)
    eval_images: int = Field(256, ge=1, description="Held-out images, one question each")
    tasks: tuple[LabTask, ...] = later(
        (),
        description="Harder questions, of which each image's last one goes around; turns_per_image is then the most, in held-out "
        "samples too. None: list some cells, then derive a sum, a maximum and a minimum",
    )
    practice: float = later(
        0.0,
        ge=0.0,
        lt=1.0,
        description="With tasks: share of the training images that are asked about as without any. Those answers name many "
        "cells, which teaches to find one. A third of them are charts if the task chart is one",
    )
    held_out: Literal["evaluation", "validation"] = later(
        "evaluation",
        description="validation: other held-out images, as many, to tune by; evaluation images are then left alone",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "LabWorldConfig":
        if self.rows * self.columns > self.alphabet:
            raise ValueError(
                f"rows x columns is {self.rows * self.columns}, more cells than the alphabet's {self.alphabet} letters"
            )
        if not self.min_cells <= self.max_cells <= self.rows * self.columns:
            raise ValueError("needs min_cells <= max_cells <= rows x columns")
        if self.practice and not self.tasks:
            raise ValueError("practice needs tasks: without any, all images are asked about so")
        if "chart" in self.tasks and self.rows < 2:
            raise ValueError("the task chart needs rows >= 2: bars, and letters below them")
        return self


class DataConfig(Based):
    """prepare: raw shards in, tokenised ``messages`` samples out."""

    FOLDER: ClassVar[str] = "data"

    lab: LabWorldConfig | None = Field(None, description="Generate the lab world's raw shards and read those")
    sources: tuple[RawSource, ...] = Field((), description="Raw shards to read; the lab adds its own three")
    processor: str = Field(
        "lab", min_length=1, description="'lab' (built in code) or a hub id / folder of a Hugging Face processor"
    )
    system_prompt: str | None = Field(
        None, description="System turn of samples that bring none, recorded with every model; None: none, '': an empty one"
    )
    processor_revision: str | None = Field(None, description="Of a hub processor: branch, tag or commit; None: main as it is now")
    max_tokens: int = Field(8192, ge=16, le=2**20, description="Samples longer than this are cut at a turn boundary or refused")
    max_answer_tokens: int | None = Field(None, ge=1, description="Likewise for one answer; None: max_tokens alone bounds it")
    learned: Learned = later(
        "all",
        description="Answers of a conversation that carry a loss. last (as released): its last one; those before are context",
    )
    min_pixels: int = Field(256 * 256, ge=256)
    max_pixels: int = Field(2048 * 2048, ge=256)
    video_fps: float = Field(2.0, gt=0.0, le=60.0, description="Frames a second that are seen of a video")
    video_frames: int | None = Field(None, ge=2, le=4096, description="So many frames of a video instead, spread evenly")
    video_max_frames: int = Field(128, ge=4, le=4096, description="Most frames of a video; the rest is left out evenly")
    video_max_pixels: int = Field(
        8 * 1024 * 1024, ge=4096, description="Pixels of all frames of a video together; two frames share a visual token"
    )
    eval_fraction: float = Field(0.02, ge=0.0, le=0.5, description="Share of images held out (lab brings its own split)")
    max_refused: float = Field(0.05, ge=0.0, le=1.0, description="Share of a source's rows that may be refused before it fails")
    suites: tuple[str, ...] = Field((), description="Evaluation suites whose images must not be trained on")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _has_data(self) -> "DataConfig":
        if self.lab is None and not self.sources:
            raise ValueError("data needs `lab` or at least one entry in `sources`")
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two entries of data.sources have the name {twice[0]!r}; give each its own")
        if self.processor != "lab" and self.min_pixels > self.max_pixels:
            raise ValueError(f"data.min_pixels {self.min_pixels} is above data.max_pixels {self.max_pixels}")
        return self
