"""What both halves of sealing are made of: no state, no order.

- `wire`: encoding, lengths and order of every message
- `keys`, `shamir`: mask keys and seeds; sharing a secret
- `bundles`: step 1 of an epoch, everybody's signed public keys
- `dealing`: step 2, shares encrypted for each peer
- `context`: the one hash that all members of a slot agree on, and what a list's signature covers
- `scalars`: weight and metrics as integers
"""
