"""A committed round as both sides see it: what a sum makes of the model, and what the coordinator says of it for good.

- `outer_step`: what an opened sum makes of the model
- `merkle`, `record`, `heads`: the coordinator's log of rounds: the tree, its entries, what is signed of it
- `checking`: what a node checks of it
"""
