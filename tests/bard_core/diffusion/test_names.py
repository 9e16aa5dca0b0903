"""What a model records of how it was trained is what its decoding does."""

from typing import get_args

from bard_core.diffusion.names import CleanAttention, TrainedAttention, decoded


def test_every_way_of_training_is_decoded_by_one_that_decoding_has() -> None:
    found = {attention: decoded(attention) for attention in get_args(TrainedAttention)}
    assert found == {"block": "block", "causal": "causal", "released": "block"}
    assert {*found.values()} <= {*get_args(CleanAttention)}
