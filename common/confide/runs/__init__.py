"""A run as data: one specification that both sides parse, hash and verify, and what follows from it alone.

- `specification`: the document, of `sections`; `reference`, `starting_points`, `toml_text`: explained, begun, written
- `schedule`, `deadline`, `budget`: of learning rates and clips, of time, of privacy
- `parameters`: n, c, q, t, d of sealing
- `fields`, `contribution`, `metrics`: what goes into a round: a record's fields; what a node gives; what it may report
- `feedback`: what nodes are asked of public answers
- `result_folder`: the manifest beside a result's files
"""
