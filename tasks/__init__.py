"""One file a stage, one thin typed Flyte task each: read refs, call ``bard_core``, return a ref."""
