"""Runs from offer to last round.

- `driver`: takes runs and survives being killed; `cohort`: who takes part
- `round_loop`: epoch, slot, outer step, commit, end; `exchange`: one question to several nodes
- `retrying`: when what went wrong is tried again
"""
