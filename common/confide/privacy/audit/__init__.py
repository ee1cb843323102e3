"""Measuring leakage: canaries, one-run auditing, membership inference and extraction, set against the claim."""
