"""Differential privacy: mechanisms, accounting, the node's ledger, and its audit."""
