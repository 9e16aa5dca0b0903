"""Judging checkpoints: lmms-eval suites through our plugin, speed against the AR baseline in one run, comparison."""

from bard_core.evaluation.evaluate import evaluate

__all__ = ["evaluate"]
