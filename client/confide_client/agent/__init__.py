"""The running node: connection to the coordinator, instructions in, signed replies out.

- `agent`: waits for instructions and never gives up; `fleet`, `envelope`: the node's one adapter to Flower
- `receiving`: polls beside the work, and says that the node is busy; `metrics`: figures for its own organization
- `app`, `runtime`: the installed ClientApp, and the answers behind it
- `control_sync`, `telling`: rosters come, receipts and progress go; `notifying`: tells people that a run waits for them
- `joining`: from a start kit to a node that may start; `status`: what an operator sees
"""
