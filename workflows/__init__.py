"""Composition of tasks, nothing else."""
