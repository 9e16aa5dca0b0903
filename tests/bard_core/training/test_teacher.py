"""What the teacher said once is what it would say now, and it is asked no more than once."""

import shutil
from dataclasses import replace

import pytest
import torch

from bard_core.config.sections.noise import NoiseConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.data.batches import BatchSpec, collate
from bard_core.data.examples import Example, attach_positions
from bard_core.diffusion.layout import attention_mask
from bard_core.models.attention import dense_mask, hidden_states
from bard_core.store import artifacts
from bard_core.training import teacher as module
from bard_core.training.objectives import Autoregressive, StageWiseDistillation
from bard_core.training.teacher import OnlineTeacher, precompute, shard_uri

from .conftest import tiny_train
from .test_step import CPU, EOS, MASK, tiny_model


class Walk:
    """Nine samples around and around."""

    def __init__(self, examples):
        self.examples = examples

    def __getitem__(self, place):
        return self.examples[place * 4 % 9], place // 9

    def batch(self, places, spec):
        return replace(collate([self[place] for place in places], spec), places=places)


@pytest.fixture
def walk(bard_home, monkeypatch):
    """A teacher, nine examples (two shards an epoch and a half), and their batches' specification."""
    monkeypatch.setattr(module, "SHARD_SAMPLES", 6)
    model = tiny_model()
    torch.manual_seed(1)
    examples = [Example(f"s{i}", torch.randint(1, 490, (30 + i,)), [(8, 14), (20, 29 + i)], [], []) for i in range(9)]
    attach_positions(examples, model)
    spec = BatchSpec(8, NoiseConfig(), MASK, EOS, 0, torch.arange(1, 490), teacher_block_size=4, max_tokens_per_row=200, seed=3)
    return OnlineTeacher(model, "block", 5, lambda *_: None), Walk(examples), spec


def never():
    raise AssertionError("the teacher was asked again")


def test_stored_answers_are_the_teachers(walk, tmp_path):
    online, walked, spec = walk
    stored = precompute(str(tmp_path / "topk"), 14, walked, spec, lambda: online, CPU)
    model = tiny_model()
    for step in range(3):  # the third step is in the second epoch
        batch = walked.batch(range(4 * step, 4 * step + 4)[::-1], spec)
        (here, now), (indices, logits) = online(batch), stored(batch)
        assert torch.equal(here, indices) and torch.allclose(now, logits, atol=1e-5)
        config = SWDConfig(train=tiny_train())
        losses = [
            float(StageWiseDistillation(model, "block", teach, config, 0.0)(batch, None).noisy) for teach in (online, stored)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_student_keeps_its_autoregressive_mode(walk):
    """With a causal clean stream the loss is half the distillation's and half the next token's."""
    teacher, walked, spec = walk
    model, config = tiny_model(), SWDConfig(train=tiny_train())
    batch = collate([(example, 0) for example in walked.examples[:3]], spec)
    mixed, alone = (StageWiseDistillation(model, "causal", teacher, config, share)(batch, None) for share in (0.5, 0.0))
    next_token = Autoregressive(model)(batch, None).clean
    assert alone.clean is None and float(mixed.noisy) == pytest.approx(float(alone.noisy) / 2, rel=1e-6)
    assert float(mixed.clean) == pytest.approx(float(next_token) / 2, rel=1e-6)
    assert set(alone.parts) == {"ce", "kl", "teacher_entropy"} and set(mixed.parts) == {*alone.parts, "ar"}
    for name, part in alone.parts.items():  # parts are told before their shares
        assert float(mixed.parts[name]) == pytest.approx(float(part), rel=1e-6)


@pytest.mark.parametrize("weighting", ["none", "inverse_t"])
def test_the_parts_of_distillation(walk, weighting):
    """Cross entropy plain or over t, KL and the teacher's entropy where the teacher has a block: added up from whole logits."""
    teacher, walked, spec = walk
    examples = walked.examples
    model = tiny_model()
    config = SWDConfig(train=tiny_train(), ce_weighting=weighting, kl_weight=0.25, ce_weight=2.0)
    batch = collate([(example, 0) for example in examples[:3]], replace(spec, tail_weight=1.0))
    loss = StageWiseDistillation(model, "block", teacher, config, 0.0)(batch, None)
    known, where = batch.teacher_knows_P, batch.noisy
    assert known is not None and 0 < int(known.sum()) < len(known)
    with torch.no_grad():
        mask = dense_mask(batch.table_BL, "block")
        hidden = hidden_states(model, batch.input_ids_BL, batch.position_ids_CBL, mask, None)
        log_q = model.lm_head(hidden).flatten(0, 1)[where.index_P].log_softmax(-1)
        ce = -log_q.gather(1, where.target_P[:, None]).squeeze(1) / (1 if weighting == "none" else where.t_P)
        indices, logits = teacher(batch)
        p = logits.softmax(-1)
        kl = -(p * log_q.gather(1, indices)).sum(-1)[known].sum()
        entropy = -(p * p.log()).sum(-1)[known].sum()
    found = {name: float(part) for name, part in loss.parts.items()}
    assert found == pytest.approx({"ce": float(ce.sum()), "kl": float(kl), "teacher_entropy": float(entropy)}, rel=1e-4)
    assert float(loss.noisy) == pytest.approx(2 * found["ce"] + 0.25 * found["kl"], rel=1e-5)
    assert found["kl"] > found["teacher_entropy"]


def test_the_release_is_the_default():
    config = SWDConfig(train=tiny_train())
    assert (config.ce_weighting, config.reduction, config.ce_weight, config.kl_weight) == ("none", "sample_mean", 1.0, 0.5)


def test_the_teacher_is_asked_once(walk, tmp_path):
    online, walked, spec = walk
    uri = str(tmp_path / "topk")
    precompute(uri, 12, walked, spec, lambda: online, CPU)
    precompute(uri, 12, walked, spec, never, CPU)
    asked = []
    precompute(uri, 13, walked, spec, lambda: asked.append(1) or online, CPU)  # one more shard
    assert asked == [1]


def test_damaged_answers_are_refused(walk, tmp_path):
    online, walked, spec = walk
    stored = precompute(str(tmp_path / "topk"), 6, walked, spec, lambda: online, CPU)
    file = tmp_path / "topk" / "shard-000000" / "topk.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(artifacts.ArtifactError, match="changed"):
        stored(walked.batch(range(2), spec))
    assert shard_uri("s3://b/t", 3) == "s3://b/t/shard-000003"


def test_answers_of_another_walk_are_refused(walk, tmp_path):
    online, walked, spec = walk
    stored = precompute(str(tmp_path / "topk"), 6, walked, spec, lambda: online, CPU)
    with pytest.raises(artifacts.ArtifactError, match="answers s4 at place 1, not s8"):
        stored(replace(walked.batch([2], spec), places=[1]))
    other = Walk(walked.examples[::-1])
    kept = precompute(str(tmp_path / "topk"), 6, other, spec, never, CPU)
    with pytest.raises(artifacts.ArtifactError, match="delete it") as said:
        kept(other.batch(range(2), spec))
    shutil.rmtree(str(said.value).split()[0])
    mended = precompute(str(tmp_path / "topk"), 6, other, spec, lambda: online, CPU)
    assert torch.equal(mended(other.batch(range(2), spec))[0], online(other.batch(range(2), spec))[0])


def test_student_and_teacher_see_the_same_noise_under_their_own_blocks(walk):
    _, walked, spec = walk
    batch = walked.batch([0], spec)
    table, taught = batch.table_BL, batch.teacher_table_BL
    noisy = table.role[0] == 1
    sizes = [part.block[0, noisy].unique(return_counts=True)[1].max() for part in (table, taught)]
    assert sizes == [8, 4]
    assert torch.equal(table.position, taught.position) and torch.equal(table.role, taught.role)


def test_the_students_tails_stay_out_of_the_teachers_sight():
    """Where the teacher answers it sees what it would under its own layout, though the student's last blocks are longer."""
    turns = [(6, 8), (13, 15), (20, 27)]
    example = Example("s", torch.arange(10, 40), turns, [], [], torch.arange(30)[None])
    spec = BatchSpec(32, NoiseConfig(name="uniform"), MASK, EOS, 0, torch.arange(1, 490), teacher_block_size=4)
    mine, theirs = (collate([(example, 0)], s) for s in (spec, replace(spec, block_size=4, teacher_block_size=None)))
    assert mine.teacher_table_BL is not None and mine.teacher_knows_P is not None

    def seen(table, turn_length, index):
        """Clean tokens by position, noisy ones by (turn, position)."""
        names = [(-1, i) for i in range(30)]
        names += [(turn, start + i) for turn, (start, end) in enumerate(turns) for i in range(turn_length(end - start))]
        row = attention_mask(table, table, "block")[0, index]
        return names[index], {names[key] for key in row.nonzero().squeeze(-1).tolist()}

    blocks = [seen(theirs.table_BL, lambda n: -(-n // 4) * 4, i) for i in theirs.noisy.index_P.tolist()]
    answered = [seen(mine.teacher_table_BL, lambda n: 32, int(i)) for i in mine.noisy.index_P[mine.teacher_knows_P]]
    assert answered == blocks


def test_a_sample_without_a_turn_has_nothing_to_distil():
    spec = BatchSpec(8, NoiseConfig(), MASK, EOS, 0, torch.arange(1, 490), teacher_block_size=4)
    batch = collate([(Example("s", torch.arange(10, 40), [], [], [], torch.arange(30)[None]), 0)], spec)
    assert batch.noisy.index_P.numel() == 0 and batch.teacher_knows_P is not None and batch.teacher_knows_P.numel() == 0


def test_a_larger_teacher_sees_its_own_mask_token_and_names_only_what_its_student_has(walk):
    """Another width, another tower, more rows, and the mask token elsewhere: as if the batch had been made for it alone."""
    _, walked, spec = walk
    batch = walked.batch(range(4), spec)
    large = tiny_model(hidden=64, vocabulary=600)
    own = 590
    asked = OnlineTeacher(large, "causal", 5, lambda *_: None, masks=(MASK, own), vocabulary=500)
    indices, logits = asked(batch)
    made_for_it = replace(batch, input_ids_BL=torch.where(batch.input_ids_BL == MASK, own, batch.input_ids_BL))
    with torch.no_grad():
        mask = dense_mask(batch.teacher_table_BL, "causal")
        hidden = hidden_states(large, made_for_it.input_ids_BL, batch.position_ids_CBL, mask, None)
        whole = large.lm_head(hidden).flatten(0, 1)[batch.noisy.index_P]
    known = whole[:, :500].topk(5)
    assert torch.equal(indices, known.indices) and torch.allclose(logits, known.values, atol=1e-5)
    assert not torch.equal(whole.topk(5).indices, known.indices), "the test can fail"
    config = SWDConfig(train=tiny_train())
    loss = StageWiseDistillation(tiny_model(), "block", asked, config, 0.0)(batch, None)
    assert torch.isfinite(loss.noisy)


def test_an_autoregressive_teacher_says_what_the_clean_tokens_before_a_position_say(walk):
    """Each sample on its own, through the stock causal forward, without a noisy token: and nothing of it where a turn is over."""
    _, walked, spec = walk
    model = tiny_model()
    batch = walked.batch(range(4), replace(spec, teacher_block_size=1))
    indices, logits = OnlineTeacher(model, "causal", 5, lambda *_: None, autoregressive=True)(batch)
    position_P = batch.table_BL.position.flatten()[batch.noisy.index_P]
    for number in range(4):
        example = walked[number][0]
        with torch.no_grad():
            alone = model(input_ids=example.input_ids_N[None]).logits[0]
        here = (batch.noisy.sample_P == number) & batch.teacher_knows_P
        inside = {place for start, end in example.turns for place in range(start, end)}
        assert here.any() and {*position_P[here].tolist()} <= inside
        tops = alone[position_P[here] - 1].topk(5)
        assert torch.equal(indices[here], tops.indices) and torch.allclose(logits[here], tops.values, atol=1e-4)
    assert not batch.teacher_knows_P.all(), "tails are there, and unknown to it"
