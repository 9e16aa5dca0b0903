"""Judging checkpoints: lmms-eval suites through our plugin, speed against the AR baseline in one run, comparison."""
