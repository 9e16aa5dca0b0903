"""What ``bard plan`` says of memory is what torch's allocator held at most: 100 M parameters on two and four processes."""

import pytest
import torch
from transformers import Qwen3ForCausalLM

from bard_core.config.sections.compute import ComputeConfig
from bard_core.plan import peak

from . import peak_worker


@pytest.mark.faults  # a minute
@pytest.mark.parametrize(("world", "accumulation", "checkpointing"), [(2, 1, True), (2, 2, False), (4, 1, False), (4, 2, True)])
def test_a_planned_peak_is_the_allocator_s(world: int, accumulation: int, checkpointing: bool) -> None:
    config = peak_worker.config_of(accumulation, checkpointing)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(peak_worker.shape())
    planned = peak.memory(model, config, ComputeConfig(num_workers=world), peak_worker.PROMPT + 2 * peak_worker.ANSWER)
    measured = max(peak_worker.peaks_on(world, config))
    print(
        f"{world} processes, accumulation {accumulation}: {measured / 2**20:.0f} MiB, {sum(planned.values()) / 2**20:.0f} planned"
    )
    assert sum(planned.values()) == pytest.approx(measured, rel=0.1)
