"""Training objectives. One module each, with its loss, batch format and metrics."""
