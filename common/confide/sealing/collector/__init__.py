"""The coordinator half of sealing: asks, keeps every answer durably, decides, opens.

- `collector`: one group's; `grouped`: one for each group of the roster, summed
- `state`: what is known, rebuilt from the journal
- `uploads`, `opening`: the masked updates on disk; secrets, masks and sum
"""
