"""The chunked head with its gradients taken on the way equals the whole head under autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bard_core.training import head as module
from bard_core.training.head import head_loss

POSITIONS, HIDDEN, VOCABULARY = 11, 6, 17


def weighted(logits, weight, target):
    return (F.cross_entropy(logits.float(), target, reduction="none") * weight).sum()


def case(bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=bias, dtype=dtype)
    hidden = torch.randn(POSITIONS, HIDDEN, dtype=dtype, requires_grad=True)
    return head, hidden, torch.rand(POSITIONS), torch.randint(VOCABULARY, (POSITIONS,))


def gradients(loss, head, hidden):
    for tensor in (hidden, *head.parameters()):
        tensor.grad = None
    (3 * loss).backward()
    return [tensor.grad.clone() for tensor in (hidden, *head.parameters())]


@pytest.mark.parametrize("rows", [1, 4, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_chunked_is_whole(rows, bias, monkeypatch):
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", 4 * VOCABULARY * rows)
    head, hidden, weight, target = case(bias)
    mine, whole = head_loss(head, weighted, hidden, weight, target), weighted(head(hidden), weight, target)
    assert float(mine) == pytest.approx(float(whole), rel=1e-6)
    for a, b in zip(gradients(mine, head, hidden), gradients(whole, head, hidden), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    with torch.no_grad():
        assert float(head_loss(head, weighted, hidden, weight, target)) == pytest.approx(float(whole), rel=1e-6)


def test_no_positions_no_loss():
    head, hidden, weight, target = case()
    loss = head_loss(head, weighted, hidden[:0], weight[:0], target[:0])
    loss.backward()
    assert float(loss) == 0 and not head.weight.grad.any()


def test_a_frozen_head_still_hands_gradients_back():
    head, hidden, weight, target = case()
    head.requires_grad_(False)
    head_loss(head, weighted, hidden, weight, target).backward()
    expected = torch.autograd.grad(weighted(head(hidden), weight, target), hidden)[0]
    assert torch.allclose(hidden.grad, expected, atol=1e-6) and head.weight.grad is None


def test_autocast_keeps_the_heads_gradient_in_fp32(monkeypatch):
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", 4 * VOCABULARY * 4)
    head, hidden, weight, target = case()
    whole = gradients(weighted(head(hidden), weight, target), head, hidden)
    with torch.autocast("cpu", torch.bfloat16):
        loss = head_loss(head, weighted, hidden, weight, target)
    mine = gradients(loss, head, hidden)
    assert loss.dtype == torch.float32 and all(grad.dtype == torch.float32 for grad in mine)
    for a, b in zip(mine, whole, strict=True):
        assert torch.allclose(a, b, atol=0.1) and not torch.equal(a, b)


def test_logits_never_exist_for_more_than_a_chunk(monkeypatch):
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", 4 * VOCABULARY * 4)
    seen = []

    def watching(logits, weight, target):
        seen.append(logits.shape[0])
        return weighted(logits, weight, target)

    head, hidden, weight, target = case()
    head_loss(head, watching, hidden, weight, target).backward()
    assert seen == [4, 4, 3]
