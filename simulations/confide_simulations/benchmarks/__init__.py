"""Benchmarks: every claim of speed, memory or quality, measured side by side."""
