"""The running node: connection to the coordinator, instructions in, signed replies out."""
