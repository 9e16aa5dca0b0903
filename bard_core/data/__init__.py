"""Data: raw shards to tokenised ``messages`` samples, and samples to batches."""
