"""Where raw data is, which schema it is in, and what of it is wanted."""

from typing import Literal

from pydantic import Field, model_validator

from bard_core.config.strict import Name, StrictModel

RawSchema = Literal["messages", "finevision", "llava_onevision", "mmfinereason"]

# What a converter reads. Ratings are read besides, where a minimum is asked of them.
COLUMNS: dict[RawSchema, tuple[str, ...]] = {
    "messages": ("messages", "images", "videos"),
    "finevision": ("images", "texts"),
    "llava_onevision": ("id", "image", "conversations"),
    "mmfinereason": ("question", "image", "qwen3vl_235b_thinking_response", "original_answer"),
}


class RawSource(StrictModel):
    """Raw shards in one schema."""

    name: Name = Field(description="Written into every sample's id and source column")
    schema_name: RawSchema = Field(description="Which converter reads the rows")
    uri: str = Field(
        min_length=1,
        description="Folder, s3:// prefix or hf://datasets/<owner>/<name>[/<folder>]; *, ** and {a,b} choose among its files",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub dataset; required for hf://")
    include: tuple[str, ...] = Field((), description="Only these subsets: folders below uri, as names or patterns; empty: all")
    exclude: tuple[str, ...] = Field((), description="Not these subsets, as names or patterns")
    columns: dict[str, str] = Field({}, description="The schema's column -> the name it has in these shards")
    root: str = Field("", description="messages: folder below which image and video paths lie; empty: the shard's own folder")
    split: Literal["train", "eval"] | None = Field(None, description="The side all rows belong to; None: their images decide")
    compare: Literal["look", "bytes"] = Field(
        "look", description="When images are the same: they look alike, or all their bytes are equal (rendered text, diagrams)"
    )
    place_images: Literal["strict", "first"] = Field(
        "strict",
        description="Placeholders that do not fit the images: refuse the row, or put all images before the first question",
    )
    on_bad_part: Literal["refuse", "drop"] = Field(
        "refuse", description="An image that does not decode or an empty last turn: refuse the row, or drop that part, counted"
    )
    min_ratings: dict[str, int] = Field({}, description="Rating column (relevance_min, ...) -> least value; unrated rows fail it")
    weight: float = Field(1.0, gt=0.0, le=100.0, description="How often a sample occurs in an epoch; 0.5: half of them do")
    max_samples: int | None = Field(None, ge=1, description="A seeded sample of this many rows; None: all")
    license: str = Field("", description="SPDX name or a sentence; shown in data card, report and model card")

    @model_validator(mode="after")
    def _consistent(self) -> "RawSource":
        if self.uri.startswith("hf://") and not self.revision:
            raise ValueError(f"source {self.name!r}: hf:// needs a `revision` (a commit is best), else the data may change")
        if unknown := sorted(set(self.columns) - set(COLUMNS[self.schema_name])):
            known = ", ".join(COLUMNS[self.schema_name])
            raise ValueError(f"source {self.name!r}: columns names {unknown[0]!r}; {self.schema_name} has {known}")
        return self
