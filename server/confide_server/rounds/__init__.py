"""Runs from offer to last round: driver, cohort, exchange, round loop, outer step."""
