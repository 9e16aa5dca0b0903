"""The plan is right about what can be checked here: public parameter counts, real checkpoints' sizes, what autograd keeps."""

import json
from pathlib import Path

import pytest
import torch

from bard_core import plan
from bard_core.cli import main
from bard_core.config.faults import read_config
from bard_core.config.sections.compute import ParallelConfig
from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.train import LoraConfig, TrainConfig
from bard_core.data.batches import BatchSpec
from bard_core.data.examples import Positions
from bard_core.data.feed import MicroBatches, Walk
from bard_core.data.index import Index
from bard_core.data.reader import Reader
from bard_core.diffusion.layout import PADDING
from bard_core.models import load
from bard_core.models.qwen3_vl import architecture
from bard_core.plan import Assumptions, peak
from bard_core.plan.balance import balance

from .models.families import FAMILIES, build

CONFIGS = Path(__file__).parents[2] / "configs"
PUBLIC = {"2b": 2_127_532_032, "4b": 4_437_815_808, "8b": 8_767_123_696}  # what the hub counts in the released weights


PBM, SWD = "pbm-b{}", "swd-b{}"
TABLE = {  # the paper's: blocks that are merged, and of students; weight decay
    "2b": ("2b", (4, 8, 16), (4, 8, 16), 0.0),
    "4b": ("4b", (4, 8, 16, 32), (8, 16, 32), 0.0),
    "8b": ("8b", (4,), (), 0.01),
    "4b_causal": ("4b", (4, 8, 16, 32), (8, 16, 32), 0.0),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_papers_table_is_planned_at_its_public_sizes(name):
    config = read_config(CONFIGS / f"bard_{name}.yaml")
    size, merged, students, decay = TABLE[name]
    found = plan.plan(config, Assumptions())
    assert found.parameters.total == PUBLIC[size]
    assert [stage.name for stage in found.stages] == [*map(PBM.format, merged), *map(SWD.format, students)]
    assert [stage.parent for stage in found.stages] == ["source", *map(PBM.format, merged[:-1]), *map(PBM.format, students)]
    assert all(sum(stage.memory.values()) < 80 * 2**30 for stage in found.stages)
    assert found.stages[0].checkpoint == 12 * PUBLIC[size]
    own = name == "4b_causal"
    for stage in found.stages[len(merged) :]:
        assert stage.teacher == ("pbm-b4" if own else "fudan-generative-ai/Bard-VL-B4-Mask-8B-Instruct")
        assert stage.memory["teacher"] == 2 * PUBLIC["4b" if own else "8b"]
    assert {stage.train.optimizer.weight_decay for stage in config.pbm.stages} == {decay}
    assert {(stage.train.optimizer.lr, stage.train.optimizer.vision_lr) for stage in config.pbm.stages} == {(2e-5, 2e-6)}
    floors = {(stage.train.optimizer.min_lr_ratio, stage.train.optimizer.vision_min_lr_ratio) for stage in config.pbm.stages}
    assert floors == {(0.05, 0.1)} and (config.pbm.noise.min_t, config.data.max_pixels) == (0.001, 2048 * 2048)
    assert config.pbm.ar_share == (0.5 if own else 0.0) and config.pbm.clean_attention == ("causal" if own else "block")
    if students:
        assert config.swd.data and config.swd.data.max_pixels == 1024 * 1024
        assert (config.swd.noise.min_t, config.swd.noise.max_t, config.swd.train.optimizer.lr) == (0.1, 0.5, 6e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_own_model_of_any_family_is_planned_at_its_real_size(family, tmp_path, capsys, bard_home):
    model, _ = build(family)
    model.config.save_pretrained(tmp_path)
    names = [f"--{key}={tmp_path}" for key in ("source.model", "data.processor")]
    assert main.main(["plan", str(CONFIGS / "own_model.yaml"), *names, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    real = sum(parameter.numel() for parameter in model.parameters())
    assert found["parameters"]["total"] == real and found["fits"]
    assert [stage["name"] for stage in found["stages"]] == ["pbm-b4", "pbm-b8", "pbm-b16", "swd-b16"]
    assert all(stage["checkpoint"] == 12 * real for stage in found["stages"])


def test_the_lab_is_planned_as_it_is_built(tmp_path):
    """A real model, its AdamW state and a real checkpoint against the plan's numbers."""
    from bard_core.lab.model import build_lab_model
    from bard_core.lab.processor import build_lab_processor

    config = read_config(CONFIGS / "lab.yaml")
    found = plan.plan(config, Assumptions())
    model = build_lab_model(config.source.lab_model, build_lab_processor(), 96, seed=0)
    real = sum(parameter.numel() for parameter in model.parameters())
    assert found.parameters.total == pytest.approx(real, rel=0.01)
    assert found.stages[0].name == "source" and found.stages[0].checkpoint == 12 * found.parameters.total


def test_epochs_need_a_number_of_samples_and_frozen_parts_no_state(capsys, tmp_path):
    text = (
        (CONFIGS / "lab.yaml")
        .read_text()
        .replace("    steps: 1000\n    batch_size: 16", "    num_epochs: 2\n    batch_size: 16", 1)
    )
    (tmp_path / "epochs.yaml").write_text(text)
    assert main.main(["plan", str(tmp_path / "epochs.yaml")]) == 2
    assert "source trains for 2 epochs: say of how many samples with --train-samples" in capsys.readouterr().err
    assert main.main(["plan", str(tmp_path / "epochs.yaml"), "--json", "--train-samples", "1001"]) == 0
    source, pbm = json.loads(capsys.readouterr().out)["stages"][:2]
    assert source["steps"] == 126  # 2002 samples in batches of 16
    total = source["checkpoint"] // 12
    assert pbm["checkpoint"] < 12 * total  # the vision side is frozen there
    (tmp_path / "frozen.yaml").write_text(text.replace("lr: 3.0e-3", "freeze_embeddings: true\n      lr: 3.0e-3", 1))
    assert main.main(["plan", str(tmp_path / "frozen.yaml"), "--json", "--train-samples", "1001"]) == 0
    frozen = json.loads(capsys.readouterr().out)
    assert frozen["stages"][0]["checkpoint"] == 12 * total - 8 * frozen["parameters"]["embeddings"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_activations_are_what_autograd_keeps(dtype):
    """The meta run against a real forward of one layer, whose eager attention also keeps its scores."""
    config = architecture("Qwen/Qwen3-VL-2B-Instruct")
    config.text_config.update({"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "vocab_size": 64})
    config.vision_config.depth = 1
    from transformers import Qwen3VLForConditionalGeneration

    with torch.device("meta"):
        meta = Qwen3VLForConditionalGeneration(config)
    tokens = 256
    planned = peak.layer_activations(meta, tokens, dtype)
    layer = meta.model.language_model.layers[0].to_empty(device="cpu").to(dtype)
    layer.self_attn.config._attn_implementation = "sdpa"
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    alive: list[torch.Tensor] = []
    hidden = torch.randn(1, tokens, 128, dtype=dtype, requires_grad=True)
    angle = torch.randn(1, tokens, 128, dtype=dtype)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(hidden, position_embeddings=(angle, angle), attention_mask=None)
    weights = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    real = sum(size for place, size in kept.items() if place not in weights)
    assert planned == pytest.approx(real, rel=0.1)


def test_more_gpus_fewer_bytes_and_more_work_more_hours():
    config = read_config(CONFIGS / "bard_2b.yaml")
    model = plan.meta_model(config)
    train = config.pbm.stages[0].train
    wide = config.compute.model_copy(update={"num_workers": 16})
    eight, sixteen = peak.memory(model, train, config.compute, 4096), peak.memory(model, train, wide, 4096)
    assert sixteen["AdamW"] * 2 == eight["AdamW"] and sum(sixteen.values()) < sum(eight.values())
    plain = train.model_copy(update={"activation_checkpointing": False})
    assert peak.memory(model, plain, config.compute, 4096)["activations"] > 5 * eight["activations"]
    assert plan.total_flops(model, train, 4096, 1024) > plan.total_flops(model, plain, 4096, 1024)
    assert plan.total_flops(model, train, 4096, 1024, teacher=model) > plan.total_flops(model, train, 4096, 1024)


def test_adapters_alone_have_gradients_and_state():
    config = read_config(CONFIGS / "bard_4b.yaml")
    first = config.pbm.model_copy(update={"stages": config.pbm.stages[:1]})
    config = config.model_copy(update={"pbm": first, "swd": config.swd.model_copy(update={"students": ()})})
    still = config.pbm.stages[0].train.optimizer.model_copy(update={"vision_lr": 0.0, "merger_lr": 0.0})
    train = config.pbm.stages[0].train.model_copy(update={"lora": LoraConfig(rank=8), "optimizer": still})
    stage = config.pbm.stages[0].model_copy(update={"train": train})
    adapted = config.model_copy(update={"pbm": config.pbm.model_copy(update={"stages": (stage,)})})
    one, whole = (plan.plan(each, Assumptions()).stages[0] for each in (adapted, config))
    adapters = 36 * 8 * (2 * (2560 + 4096) + 2 * (2560 + 1024) + 3 * (2560 + 9728))  # q o, k v, the mlp
    assert one.memory["AdamW"] == 8 * adapters // config.compute.most_workers < whole.memory["AdamW"] / 100
    assert one.checkpoint == 4 * PUBLIC["4b"] + 12 * adapters and one.model == whole.model


def test_a_datasets_balance_is_that_of_its_batches(lab_dataset, make_model, tmp_path, capsys):
    """Rows, padding and waits of real micro-batches on two ranks."""
    train = TrainConfig(steps=9, batch_size=24, accumulation=2, max_tokens_per_row=512)
    found = balance(Index.open(Path(lab_dataset.uri)), train, 4, 1, workers=2, steps=3)
    model = load(make_model(tmp_path / "model", 4).uri)
    walk = Walk(Reader(lab_dataset, "train"), train.seed, Positions(model.config))
    spec = BatchSpec(4, NoiseConfig(), 5, 6, 0, torch.arange(10, 200), max_tokens_per_row=512)
    ranks = [MicroBatches(walk, spec, 24, 2, rank, 2) for rank in range(2)]
    pairs = [[each[number] for each in ranks] for number in range(6)]
    cells = [[batch.input_ids_BL.numel() for batch in pair] for pair in pairs]
    real = sum(int((batch.table_BL.role != PADDING).sum()) for pair in pairs for batch in pair)
    assert found.useful < 1 and found.useful == pytest.approx(real / sum(map(sum, cells)))
    assert found.in_step == pytest.approx(sum(map(sum, cells)) / sum(2 * max(pair) for pair in cells))
    assert found.tokens_per_sample == round(real / 72) and found.rows * found.row_tokens == max(map(max, cells))
    assert main.main(["plan", str(CONFIGS / "lab.yaml"), "--dataset", lab_dataset.uri]) == 0
    assert "ranks work" in (told := capsys.readouterr().out) and f"samples as in {lab_dataset.uri}" in told


def test_gradients_wait_whole_where_they_cross_nodes_once():
    """As ``parallel.reduce_at`` leaves them: whole over all workers, shards inside nodes, a unit's without accumulation."""
    config = read_config(CONFIGS / "bard_8b.yaml")
    model, train = plan.meta_model(config), config.pbm.stages[0].train
    inside = config.compute.model_copy(update={"parallel": ParallelConfig(shard_over="node")})
    once = train.model_copy(update={"accumulation": 1, "batch_size": 16})
    over_all, nodes, single = (
        peak.memory(model, one, compute, 4096)
        for one, compute in ((train, config.compute), (train, inside), (once, config.compute))
    )
    total, unit = PUBLIC["8b"], peak.count(model).root + peak.count(model).layer
    assert over_all["whole gradients"] == 4 * total and over_all["master weights"] == 4 * total // 16
    assert nodes["whole gradients"] == single["whole gradients"] == 2 * unit and nodes["master weights"] == 4 * total // 8
    assert over_all["reduce buffers"] == nodes["reduce buffers"] == 4 * unit
    alone = peak.memory(model, train, config.compute.model_copy(update={"num_workers": 1}), 4096)
    assert alone["whole gradients"] == alone["reduce buffers"] == 0 and alone["gradients"] == 4 * total


def test_what_does_not_fit_is_refused(capsys):
    arguments = ["plan", str(CONFIGS / "bard_8b.yaml"), "--compute.num_workers", "4"]
    assert main.main(arguments) == 1
    told = capsys.readouterr().out
    assert "does NOT fit" in told and told.startswith("what stands is not known: s3://BUCKET"), "planned without its bucket"
    assert main.main([*arguments, "--gpu", "h200"]) == 0


def test_the_command(capsys, tmp_path):
    assert main.main(["plan", str(CONFIGS / "lab.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "lab"
    assert main.main(["plan", str(CONFIGS / "lab.yaml")]) == 0
    assert "pbm-b32" in (out := capsys.readouterr().out) and "memory a GPU at the peak" in out
    assert main.main(["plan", str(CONFIGS / "lab.yaml"), "--json", "--swd.train.steps", "7"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"][-1]["steps"] == 7
    broken = tmp_path / "broken.yaml"
    broken.write_text((CONFIGS / "lab.yaml").read_text().replace("[pbm-b32]", "[pbm-b64]"))
    assert main.main(["plan", str(broken)]) == 2 and "swd.students.0: names pbm-b64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--mfu", "0", "mfu is 0; it must be a share"),
        ("--mfu", "35", "mfu is 35"),
        ("--tokens-per-sample", "0", "tokens_per_sample is 0"),
        ("--image-tokens-per-sample", "-1", "image_tokens_per_sample is -1"),
        ("--train-samples", "0", "train_samples is 0"),
    ],
)
def test_the_command_refuses_what_cannot_be(capsys, flag, value, words):
    assert main.main(["plan", str(CONFIGS / "lab.yaml"), flag, value]) == 2
    assert words in capsys.readouterr().err
