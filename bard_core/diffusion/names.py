"""The words of the method that configurations use too. No torch here, so that a command line starts at once."""

from typing import Literal

CleanAttention = Literal["block", "causal"]  # what the clean stream sees: whole blocks (the paper), or tokens before its own
PrefixBlocks = Literal["turns", "uniform"]  # a prompt's blocks: anew at every turn, or counted from its first token
NoiseName = Literal["mask", "uniform", "edit", "mix"]
NoiseSchedule = Literal["linear", "cosine"]  # how the masked share grows with the noise level t
Reduction = Literal["sample_mean", "token_mean"]
SizeDraw = Literal["uniform", "growing"]  # how an elastic stage draws block sizes
MASK_TOKEN = "<|mask|>"  # what a noisy position starts from
