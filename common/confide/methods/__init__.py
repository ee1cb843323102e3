"""Training objectives. One module each, with its loss, batch format and metrics.

- `base`: what each provides, and how one is made by its name
- `causal_lm`, `masked_lm`: pre-training, with `documents` and `packing`; `sft`, `classification`, `contrastive`
- `preference`, `reward`, `dpo` with its `reference`: from pairs of answers; `in_context`: nothing is trained
- `feedback`: what a node says of public answers, by what its comparisons taught it
- `token_loss`: cross-entropy over a vocabulary
- `first_model`: what a run starts from, a model or a tokenizer, and the schema of its updates
"""
