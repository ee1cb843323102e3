"""The transport of updates: sums leave, single updates do not. docs/sealing.md specifies it.

- `roles`: the two halves as the run driver and the agent see them; `factory` makes what a specification asks for
- `member`, `collector`: the halves of secure aggregation; `primitives`: what both are made of
- `plain`: both halves where sealing is off
- `differences`: which sums may follow each other
- `evidence`, `manifest`: what an auditor verifies afterwards
- `crash_points`: named moments at which tests kill a process
"""
