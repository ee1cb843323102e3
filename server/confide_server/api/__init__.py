"""What may be asked of the coordinator from outside."""
