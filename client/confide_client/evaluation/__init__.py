"""Scores of an exported model on public tasks."""
