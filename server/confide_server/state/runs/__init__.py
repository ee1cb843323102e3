"""What runs are, did, and are to do.

- `journal`: all of it, of the parts `journal_core`, `submission_journal`, `manifest_journal`, `round_journal` and
  `driving_journal`; `statements`: SQL of more than one of them
- `service`, `status`, `control`, `ends`: asked, shown, changed, ended
- `round_log`: the signed log of rounds, and what nodes are shown of it
"""
