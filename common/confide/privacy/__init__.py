"""Differential privacy that an organization can check: mechanisms, accounting, and the ledger of what was spent.

In the order of reading; docs/privacy.md explains all of it to a privacy officer:

- `events`: what can be charged; `accounting`: what it costs; `calibration`: how much noise a promise needs
- `noise`: where noise comes from, on integers
- `families`, `per_sample`, `dpsgd`: gradients of single records, clipped; `counting`: counts of a tokenizer run
- `organization`, `shared`, `shared_units`: noise that all nodes add together inside the sealed sum
- `metrics`: what may travel beside an update
- `filter`: what still fits a budget; `ledger`, `ledger_entries`, `ledger_state`, `charging`, `receipts`: what was spent
- `plan`, `plan_words`, `report`: what one run would cost, and what it did
- `audit`: measuring leakage
"""

LEDGER_NAME = "privacy-ledger.jsonl"
"""The privacy ledger's file in a node's state folder; here, so that asking for it imports no accounting."""
