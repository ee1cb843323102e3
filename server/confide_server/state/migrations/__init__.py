"""Changes of the coordinator's database, run by Database at start."""
