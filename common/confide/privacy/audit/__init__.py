"""Measuring leakage, set against the claim.

- `canaries`: made-up records that a node plants; `scoring`: what a trained model says about them
- `one_run`: a lower bound on epsilon; `membership`: inference by thresholds on the loss
"""
