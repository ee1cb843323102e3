"""The demo: four organizations, as real processes, fine-tune one model, and every claim is scored at the end.

- `run`: from end to end; `job`, `shards`: the specification, and who holds what
- `scoring`, `worker`: scores and baselines; `live`, `report`: what is shown
"""
