"""The `bard` command line, one file a verb family."""
