"""Where things are kept: bytes, artifacts, refs, claims."""
