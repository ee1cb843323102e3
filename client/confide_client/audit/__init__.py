"""The hash-chained audit log, and audits of what a model remembers."""
