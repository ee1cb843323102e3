"""What operators see of the coordinator's process: structured logs, and figures for Prometheus.

    logs.py     lines as text or JSON, each with the run, round, slot and node that it is about
    metrics.py  figures of the coordinator's own, on a port of their own

No secret, no text and no value of a node is in either: losses, norms and update sizes of one organization stay out.
"""
