"""Federated byte-level BPE: a tokenizer learned from sealed sums of counts (docs/tokenizer.md)."""
