"""What operators see of the coordinator's process: structured logs, figures for Prometheus, traces.

    logs.py     lines as text or JSON, each with the run, round, slot and node that it is about
    metrics.py  figures of the coordinator's own, on a port of their own
    traces.py   spans of runs, rounds, slots and steps for OpenTelemetry

No secret, no text and no value of a node is in either: losses, norms and update sizes of one organization stay out.
"""
