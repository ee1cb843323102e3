"""Data sets of this node: registered, read, encoded; never sent."""
