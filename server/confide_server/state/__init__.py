"""What the coordinator remembers: database, migrations, checkpoints, the journal of runs, receipts."""
