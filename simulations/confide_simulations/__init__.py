"""Demo, benchmarks and research simulations over the same code that organizations run.

- `demo`, `rlhf`, `recipes`, `results`: worked examples; `simulate`: virtual nodes on Ray; `benchmarks`; `commands`
- `local_federation`, `processes`, `forks`, `forking`: a whole federation on this machine, as real processes
- `stand_in_run`: the specification of a run in which nothing is trained
- `assets`: models and text that arrive as packages
"""
