"""The coordinator's process: everything put together, started and stopped.

- `process`: settings, ports, signals, threads
"""
