"""The node: an organization's agent, beside its data, ruled by its own policy.

- `agent`: connection, instructions in, signed replies out; `runs`: what the node knows of each run
- `policy`, `data`: what is allowed, and on what; `training`: the local step
- `audit`: the log, and what a model remembers
- `page`: the node's own browser page; `commands`: `confide node`, `data`, `model`, `ledger`, `report`, ...
- `evaluation`, `endpoint`: scores of an exported model; asking a served one
- `state`: the node's folder; `kept_files`: what training keeps in it; `progress`: what the node is doing right now
"""
