"""How answers are corrupted."""

from pydantic import Field, model_validator

from bard_core.config.strict import StrictModel, later
from bard_core.diffusion.names import NoiseName, NoiseSchedule


class LaterNoise(StrictModel):
    """The noise of a stage's last steps: the release's prior_dist_2 and switch_prior_thresh."""

    name: NoiseName
    after: float = Field(gt=0.0, lt=1.0, description="Share of the steps before it")


class NoiseConfig(StrictModel):
    """How response blocks are corrupted (paper section 3; schedules in ``diffusion.noise``)."""

    name: NoiseName = "mask"
    schedule: NoiseSchedule = later(
        "linear",
        description="Masked share at noise level t: linear: t. cosine: 1 - cos(pi t / 2). Losses are weighed as it asks",
    )
    min_t: float = Field(0.001, ge=0.0, le=1.0, description="Least noise level of a block: for mask, the share that is masked")
    max_t: float = Field(1.0, ge=0.0, le=1.0, description="Greatest noise level of a block")
    t_power: float = later(
        1.0,
        gt=0.0,
        le=10.0,
        description="t is min_t + (max_t - min_t) u^t_power with u uniform: below 1 more heavy noise, above 1 more light noise",
    )
    complementary: bool = Field(False, description="Train on a mask and its complement against one prefix")
    then: LaterNoise | None = later(None, description="Another noise for the last steps of a stage")

    @model_validator(mode="after")
    def _mask_alone(self) -> "NoiseConfig":
        if self.schedule != "linear" and "mask" not in (self.name, self.then and self.then.name):
            raise ValueError(f"noise.schedule {self.schedule} is of mask noise; {self.name} has its own")
        if self.then is not None and self.complementary:
            raise ValueError("noise.complementary is of mask noise throughout; leave out noise.then")
        return self

    def first_later_step(self, steps: int) -> int:
        """The step from which on the later noise is used: ``steps`` where there is none."""
        return steps if self.then is None else int(steps * self.then.after)

    @property
    def later(self) -> "NoiseConfig":
        """The noise of the last steps."""
        return self if self.then is None else self.model_copy(update={"name": self.then.name, "then": None})

    @model_validator(mode="after")
    def _ordered(self) -> "NoiseConfig":
        if self.min_t >= self.max_t:
            raise ValueError(f"min_t {self.min_t} must be below max_t {self.max_t}")
        if self.complementary and self.name != "mask":
            raise ValueError(f"noise.complementary needs name: mask; {self.name} noise has no complement")
        return self
