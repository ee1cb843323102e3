"""What the node knows of each run: offer, approval, plan, cost, slots.

- `offers`, `submissions`: is an offer what it says it is, and new; `trial`, `approvals`: may it run
- `plan`, `speed`: what a run would do here, and how fast
- `run`, `replies`: how the steps of a run's slots are answered; `loading`: how its trainer comes to be
- `spending`: the privacy ledger as runs use it
- `judging`, `feedback_memory`: may public answers be judged, and which were
- `heads`, `proving`: what the coordinator says of the rounds, and how it is checked
- `records`, `endings`: where a run stands, and how it ends
"""
