"""Carries sealed questions to nodes and their sealed answers back (docs/federated-retrieval.md).

- `relay`: cards, who listens, what is under way
"""
