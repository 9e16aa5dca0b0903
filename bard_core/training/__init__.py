"""Training: one loop, three objectives, FSDP2, checkpoints that can be trusted, consolidation to Hugging Face folders."""
