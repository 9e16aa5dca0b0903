"""However a stage's processes are laid out, its weights are the same: workers, nodes, micro-batches, own units of layers.

Gradients cross nodes once a step.
"""

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from bard_core.config.sections.compute import ParallelConfig
from bard_core.training.parallel import shard

from .conftest import stage_specs
from .step_worker import one_step, steps_on
from .test_step import tiny_model
from .workers import state_of, train

pytestmark = pytest.mark.faults  # minutes: several process groups each


@pytest.fixture(scope="module")
def alone():
    return one_step(0, 1, 1)[0]


def close(gradient, alone):
    return torch.allclose(gradient, alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))


def test_gradients_are_reduced_once_a_step(alone):
    one, four, units, checkpointed, bf16 = steps_on(
        2,
        {"parts": 1},
        {"parts": 4},
        {"parts": 4, "own_units": True},
        {"parts": 2, "checkpointing": True},
        {"parts": 4, "precision": "bfloat16"},
    )
    for gradient, _ in (one, four, units, checkpointed):
        assert close(gradient, alone)
    assert torch.cosine_similarity(bf16[0], alone, dim=0) > 0.99
    assert one[1]["scatter"] == four[1]["scatter"] == 1
    assert units[1]["scatter"] == 3  # two layers and the root


def test_nodes_reduce_inside_and_sum_across_once(alone):
    (gradient, counts), (units, _) = steps_on(
        4, {"parts": 2, "over": "node"}, {"parts": 2, "over": "node", "own_units": True}, local=2
    )
    assert close(gradient, alone) and close(units, alone)
    assert counts["scatter"] == 2 and counts["sum"] == 1


def test_workers_must_fill_nodes(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="1 workers do not fill nodes of 2: set num_workers to a multiple"):
            shard(tiny_model(), tiny_model(), "float32", torch.device("cpu"), False, ParallelConfig(shard_over="node"))
    finally:
        dist.destroy_process_group()


def weights(run, step):
    return {name: value for name, value in state_of(run.checkpoint(step)).items() if name.startswith("model.")}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param((1, "all", 1), (4, "node", 2), id="1 to 2x2"),
        pytest.param((4, "all", 4), (1, "all", 1), id="4 to 1", marks=pytest.mark.faults),
    ],
)
def test_a_run_goes_on_in_another_layout(first, second, tiny_dataset, source_model, bard_home):
    """Three steps in one layout, three in another: the weights of one worker's six."""
    spec = stage_specs(tiny_dataset, source_model, steps=6, checkpoint_every=3)["pbm"]
    run, _ = train(spec, 1)
    reference = weights(run, 6)
    shutil.rmtree(run.uri)
    for world, over, local in (first, second):
        train(spec, world, parallel=ParallelConfig(shard_over=over), local_world=local)
        if (world, over, local) == first:
            shutil.rmtree(Path(run.uri) / "step-000006")
    for name, value in weights(run, 6).items():
        torch.testing.assert_close(value, reference[name], rtol=1e-3, atol=1e-4)
