"""What this node allows."""
