"""Documents.

How fast they are read and searched (`ingest`), federated search (`retrieval`), a trained retriever
(`retriever`).
"""
