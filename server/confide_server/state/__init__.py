"""What the coordinator remembers.

- `database`, `migrations`, `group_writer`: SQL; `checkpoints`, `garbage`: models as files named by
  their hash, and which of them nothing needs
- `runs`: what runs are and did
- `events`, `event_tail`, `event_lines`: what happens in a run, as it is watched, and in words; `views`: pages of it
- `receipts`, `audit_log`, `releases`: what nodes spent; who did what; models under a name
- `release_tables`, `release_subject`, `release_gate`: releases as they are kept; what they name besides rounds of runs;
  what one that was optimised for preferences needs beside signatures
- `progress`, `sightings`: what nodes say they do, and when they were seen
- `idempotency`: changes that were done already
- `preference_tables`: what people prefer, and snapshots of it
- `serving_tables`, `serving_keys`, `serving_aliases`, `serving_requests`: of an endpoint
"""
