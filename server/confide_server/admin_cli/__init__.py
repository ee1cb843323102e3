"""The administrator's and the coordinator operator's commands."""

# What `confide --help` says of each without importing it: the first paragraph of its own help.
SUMMARIES = {
    "consortium": "The consortium's root: who is a member. Keep its folder offline.",
    "run": "Runs: plan, submit, watch, pause, stop, continue, export.",
    "serve": "Serve a trained model over an OpenAI-compatible endpoint: keys, budgets, adapters by alias.",
    "server": "The coordinator: directs runs over organizations it cannot see into.",
}
