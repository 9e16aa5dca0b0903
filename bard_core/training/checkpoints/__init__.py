"""A run's checkpoints: written, kept, read and made into a model folder."""
