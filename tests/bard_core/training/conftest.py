"""One tiny dataset and one tiny source model for all training tests."""

import pytest

from bard_core.config.sections.data import DataConfig, LabWorldConfig
from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.source import LabModelConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.config.sections.train import OptimizerConfig, TrainConfig
from bard_core.data.prepare import prepare
from bard_core.store import artifacts
from bard_core.store.refs import ModelRef
from bard_core.training.checkpoints.consolidate import consolidate
from bard_core.training.spec import StageSpec, run_of
from bard_core.training.stage import prepare_base, run_stage

TINY_MODEL = LabModelConfig(
    hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, intermediate_size=48, vision_hidden_size=16, vision_heads=2
)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory):
    world = LabWorldConfig(rows=2, columns=2, alphabet=4, digits=3, min_cells=2, max_cells=3, train_images=24, eval_images=6)
    return prepare(DataConfig(lab=world, max_tokens=512), str(tmp_path_factory.mktemp("dataset") / "lab"))


@pytest.fixture(scope="session")
def source_model(tiny_dataset, tmp_path_factory):
    """The ref of a source model, four steps old."""
    folder = tmp_path_factory.mktemp("source")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BARD_HOME", str(folder / "home"))
        return finish(stage_specs(tiny_dataset, None, steps=4)["source"], folder / "model")


def tiny_train(steps=6, **kwargs):
    frozen = kwargs.pop("frozen", True)
    rate = 0.0 if frozen else 1e-3
    optimizer = OptimizerConfig(lr=3e-3, vision_lr=rate, merger_lr=rate, warmup_steps=2)
    values = {"batch_size": 4, "max_tokens_per_row": 256, "precision": "float32", "checkpoint_every": 3, "log_every": 1}
    return TrainConfig(steps=steps, optimizer=optimizer, **{**values, **kwargs})


def stage_specs(dataset, source, **kwargs):
    """A spec of each stage; without a source model, only the stage that makes one."""
    made = {
        "source": StageSpec(
            stage="source",
            dataset=dataset,
            train=tiny_train(**{"frozen": False, **kwargs}),
            lab_model=TINY_MODEL,
            clean_attention="causal",
        )
    }
    if source is None:
        return made
    train = tiny_train(**kwargs)
    made["pbm"] = StageSpec(stage="pbm", dataset=dataset, train=train, parent=source, block_size=4)
    made["swd"] = StageSpec(
        stage="swd",
        dataset=dataset,
        train=train,
        parent=source,
        block_size=8,
        noise=NoiseConfig(min_t=0.1, max_t=0.5),
        swd=SWDConfig(train=train, students=()),
        teacher=source.model_copy(update={"block_size": 4, "stage": "pbm"}),
    )
    return made


def finish(spec, out):
    """Train here, consolidate, and return the model's ref."""
    run = run_of(spec)
    base = prepare_base(spec, run)
    final = run_stage(spec, base, run)
    bard = {"block_size": spec.block_size, "clean_attention": spec.clean_attention}
    folder = consolidate(final, out, artifacts.fetch(base), bard=bard)
    manifest = artifacts.commit_directory(folder, f"{out}-ref", kind="model")
    return ModelRef(
        uri=f"{out}-ref", manifest_sha256=manifest.digest, stage=spec.stage, block_size=spec.block_size, parent_sha256=None
    )
