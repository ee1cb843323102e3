"""Federated byte-level BPE: a tokenizer learned from sealed sums of counts (docs/tokenizer.md).

- `terms`, `state`: the public rules of one run; what it passes on from round to round
- `counting`: a node's counts; `merging`: the outer step on their sum
- `export`: the finished tokenizer as files
"""
