"""The administrator's and the coordinator operator's commands."""

# What `confide --help` says of each without importing it: the first paragraph of its own help.
SUMMARIES = {
    "consortium": "The consortium's root: who is a member. Keep its folder offline.",
    "run": "Runs: plan, submit, watch, pause, stop, continue, export.",
    "serve": "Serve a trained model over an OpenAI-compatible endpoint: keys, budgets, adapters by alias.",
    "release": "Releases: name a run's model, sign, publish, roll back.",
    "audit-log": "The coordinator's audit log: show, export, verify.",
    "server": "The coordinator: directs runs over organizations it cannot see into.",
}
