"""Subcommands of `confide` that this package brings."""

# What `confide --help` says of each without importing it: the first paragraph of its own help.
SUMMARIES = {
    "audit": "Audit what training remembers, with made-up records (canaries).",
    "chat": "Talk to a model here, of which nothing leaves this machine, or to a served one (--url).",
    "data": "Register and check data sets.",
    "evaluate": "Measure a model on evaluation tasks, on this machine: nothing is fetched and nothing leaves.",
    "ledger": "The privacy ledger: what was set aside, spent and released.",
    "model": "Base models on this machine, each pinned by a hash over its files.",
    "node": "Run this organization's node beside its data.",
    "report": "Write the signed report of a run, as JSON and as a page. Status 3: the audit contradicts the claim.",
}
