"""How updates travel: a coordinator's collector and a node's member, sealed (docs/sealing.md) or in the open."""
