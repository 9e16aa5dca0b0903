"""One step, however it is divided; what stops it; and what it reports."""

import functools

import pytest
import torch

from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.pbm import PBMMethod
from bard_core.config.sections.train import OptimizerConfig, TrainConfig
from bard_core.data.batches import BatchSpec, collate
from bard_core.data.examples import Example, attach_positions
from bard_core.training.loop import TrainingDiverged, _read, _Window, train_step
from bard_core.training.objectives import Autoregressive, ProgressiveBlockMerging
from bard_core.training.optimizer import build_optimizer
from bard_core.training.parallel import compile_layers, use_activation_checkpointing
from bard_core.training.throughput import Shape, shape_of, step_flops

CPU, MASK, EOS = torch.device("cpu"), 510, 509


def tiny_model(hidden=32, vocabulary=512):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def examples_for(model, count=4):
    torch.manual_seed(1)
    examples = [Example(f"s{i}", torch.randint(1, 490, (30 + i,)), [(8, 14), (20, 29 + i)], [], []) for i in range(count)]
    attach_positions(examples, model)
    return examples


def step_of(parts=1, precision="float32", prepare=None, autoregressive=False, reduction="token_mean", **objective):
    """One step from the same start: its result, the gradients it took and the objective."""
    model = tiny_model()
    examples = examples_for(model)
    if prepare is not None:
        prepare(model)
    made = Autoregressive(model) if autoregressive else ProgressiveBlockMerging(model, noise="mask", **objective)
    config = TrainConfig(steps=1, batch_size=4, accumulation=parts, precision=precision, optimizer=OptimizerConfig(lr=1e-3))
    spec = BatchSpec(
        None if autoregressive else 4, NoiseConfig(), MASK, EOS, 0, torch.arange(1, 490), reduction, max_tokens_per_row=400
    )
    batches = [collate([(example, 0) for example in examples[part::parts]], spec) for part in range(parts)]
    made.train()
    done = train_step(made, build_optimizer(model, config.optimizer), batches, lambda *_: None, config, spec, world=1)
    return done, torch.cat([p.grad.flatten() for p in model.parameters()]), made


def loss_of(done):
    return float(done.losses["loss"])


@pytest.mark.parametrize(
    "options",
    [
        {"clean_attention": "block", "ar_weight": 0.0},
        {"clean_attention": "causal", "ar_weight": 0.5},
        {"clean_attention": "causal", "ar_weight": 0.5, "reduction": "sample_mean"},
        {"autoregressive": True},
    ],
)
def test_micro_batches_do_not_change_a_step(options):
    (whole, whole_grad, _), (split, split_grad, _) = step_of(1, **options), step_of(2, **options)
    assert loss_of(split) == pytest.approx(loss_of(whole), rel=1e-5)
    assert float(split.supervised) == float(whole.supervised) and float(split.tokens) == float(whole.tokens)
    assert torch.allclose(whole_grad, split_grad, atol=1e-5)


def test_half_diffusion_half_autoregressive():
    """With a causal clean stream the loss is the mean of the two streams' own token means."""
    options = {"clean_attention": "causal"}
    mixed = step_of(ar_weight=PBMMethod(clean_attention="causal").ar_share, **options)[0]
    diffusion, causal = step_of(ar_weight=0.0, **options)[0], step_of(autoregressive=True)[0]
    assert loss_of(mixed) == pytest.approx((loss_of(diffusion) + loss_of(causal)) / 2, rel=1e-5)
    apart = {name: float(loss) for name, loss in mixed.losses.items() if name != "loss"}
    assert apart == pytest.approx({"ce": loss_of(diffusion), "ar": loss_of(causal)}, rel=1e-5)
    assert PBMMethod().ar_share == 0 and PBMMethod(clean_attention="causal", ar_weight=0.0).ar_share == 0


def test_activation_checkpointing_changes_nothing():
    options = {"clean_attention": "block", "ar_weight": 0.0}
    (plain, plain_grad, _), (less, less_grad, _) = step_of(**options), step_of(prepare=use_activation_checkpointing, **options)
    assert loss_of(plain) == loss_of(less) and torch.allclose(plain_grad, less_grad, atol=1e-6)


def test_compiled_layers_change_only_the_last_bits():
    options = {"clean_attention": "block", "ar_weight": 0.0}
    prepare = functools.partial(compile_layers, backend="aot_eager")
    (plain, plain_grad, _), (compiled, compiled_grad, made) = step_of(**options), step_of(prepare=prepare, **options)
    assert made.model.model.layers[0]._compiled_call_impl is not None
    assert loss_of(plain) == pytest.approx(loss_of(compiled), rel=1e-5) and torch.allclose(plain_grad, compiled_grad, atol=1e-5)


def test_bf16_keeps_loss_and_gradients_in_fp32():
    options = {"clean_attention": "block", "ar_weight": 0.0}
    (exact, exact_grad, _), (mixed, mixed_grad, _) = step_of(**options), step_of(precision="bfloat16", **options)
    assert mixed.losses["loss"].dtype == mixed_grad.dtype == torch.float32
    assert loss_of(mixed) != loss_of(exact)
    assert loss_of(mixed) == pytest.approx(loss_of(exact), rel=0.02)
    assert torch.cosine_similarity(exact_grad, mixed_grad, dim=0) > 0.99


def test_a_sample_gone_bad_stops_training_by_name():
    """A real NaN: the embedding of a token that only one sample has."""

    def poison(model):
        examples = examples_for(model)
        others = set(torch.cat([e.input_ids_N for e in examples if e.id != "s2"]).tolist())
        token = next(t for t in examples[2].input_ids_N.tolist() if t not in others)
        with torch.no_grad():
            model.get_input_embeddings().weight[token] = float("nan")

    done, _, objective = step_of(parts=4, prepare=poison, clean_attention="block", ar_weight=0.0)
    window = _Window(steps=[done], samples=[["s0", "s1", "s2", "s3"]])
    optimizer = build_optimizer(objective.model, OptimizerConfig())
    with pytest.raises(TrainingDiverged, match=r"at step 7; .*\['s2'\]"):
        _read(window, 7, objective, optimizer, CPU)


def test_a_record_says_what_a_step_cost():
    done, _, objective = step_of(clean_attention="block", ar_weight=0.0)
    record = _read(
        _Window(steps=[done], samples=[["s0"]]), 1, objective, build_optimizer(objective.model, OptimizerConfig()), CPU
    )
    assert record["step"] == 1 and record["loss"] == record["ce"] == loss_of(done) and record["supervised_tokens_per_s"] > 0
    assert 0.05 < record["peak_memory_gib"] < 64 and "mfu" not in record
    assert 0 < shape_of(objective.model).decoder < sum(p.numel() for p in objective.model.parameters())
    assert step_flops(Shape(decoder=7, head=10, attention=5), tokens=3, supervised=2) == 6 * (3 * 7 + 20)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), MemoryError()],
)
def test_memory_that_runs_out_names_the_samples(error):
    from types import SimpleNamespace

    from bard_core.training.loop import OutOfMemory, _naming_samples

    batches = [SimpleNamespace(input_ids_BL=torch.zeros(2, 27292), sample_ids=["lab/1", "lab/7"])]
    with (
        pytest.raises(
            OutOfMemory, match=r"step 8 over rows of 2 x 27292 tokens, samples \['lab/1', 'lab/7'\].*max_tokens_per_row"
        ),
        _naming_samples(7, batches),
    ):
        raise error
    with pytest.raises(RuntimeError, match="another") as other, _naming_samples(7, batches):
        raise RuntimeError("another")
    assert not isinstance(other.value, OutOfMemory)
