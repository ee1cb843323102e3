"""What the coordinator remembers.

- `database`, `migrations`, `group_writer`: SQL; `checkpoints`, `garbage`: models as files named by
  their hash, and which of them nothing needs
- `run_journal`: what runs are and did, of the parts `journal_core`, `submission_journal`, `manifest_journal`,
  `round_journal`, `driving_journal`; `run_service`, `run_status`, `run_control`, `run_ends`: asked, shown, changed,
  ended
- `events`, `event_tail`, `event_lines`: what happens in a run, as it is watched, and in words; `views`: pages of it
- `round_log`: the signed log of rounds, and what nodes are shown of it
- `receipts`, `audit_log`, `releases`: what nodes spent; who did what; models under a name
- `release_tables`, `release_subject`, `release_gate`: releases as they are kept; what they name besides rounds of runs;
  what one that was optimised for preferences needs beside signatures
- `progress`, `sightings`: what nodes say they do, and when they were seen
- `idempotency`: changes that were done already
- `preference_tables`: what people prefer, and snapshots of it
- `serving_tables`, `serving_keys`, `serving_aliases`, `serving_requests`: of an endpoint
"""
