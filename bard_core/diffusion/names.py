"""The words of the method that configurations use too. No torch here, so that a command line starts at once."""

from typing import Literal

CleanAttention = Literal["block", "causal"]  # what the clean stream sees: whole blocks (the paper), or tokens before its own
TrainedAttention = Literal["block", "causal", "released"]  # released: whole blocks, and their noisy copies too
PrefixBlocks = Literal["turns", "uniform"]  # a prompt's blocks: anew at every turn, or counted from its first token
NoiseName = Literal["mask", "uniform", "edit", "mix"]
NoiseSchedule = Literal["linear", "cosine"]  # how the masked share grows with the noise level t
Learned = Literal["all", "last"]  # which answers of a conversation carry a loss
Reduction = Literal["sample_mean", "token_mean"]
SizeDraw = Literal["uniform", "growing"]  # how an elastic stage draws block sizes
MASK_TOKEN = "<|mask|>"  # what a noisy position starts from


def decoded(attention: TrainedAttention) -> CleanAttention:
    """What the clean stream of a model trained so sees at decoding, where no noisy copy stands beside what is written."""
    return "causal" if attention == "causal" else "block"
