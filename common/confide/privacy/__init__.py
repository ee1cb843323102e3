"""Differential privacy that an organization can check: mechanisms, accounting, and the ledger of what was spent.

Read in this order: events (what can be charged), accounting (what it costs), calibration (how much noise a promise
needs), randomness and rounding (where noise comes from), filter (what still fits a budget), ledger (what was spent),
plan (what one run would cost). docs/privacy.md explains all of it to a privacy officer.
"""

LEDGER_NAME = "privacy-ledger.jsonl"
"""The privacy ledger's file in a node's state folder; here, so that asking for it imports no accounting."""
