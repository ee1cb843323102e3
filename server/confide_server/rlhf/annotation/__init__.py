"""What people said of answers, from one judgement to a set that never changes.

- `preferences`: an answer, and a comparison of two, as they are written down
- `annotating`: pairs put to a person, blind; `adjudication`: pairs that annotators left open
- `snapshots`: comparisons frozen under a hash, with their statistics
- `commands`: annotate and adjudicate; `upload_commands`: to the coordinator, and back from it
"""
