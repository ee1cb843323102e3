"""Questions to this node's own index: off unless policy.toml says otherwise. Docs: docs/federated-retrieval.md.

- `index`: the node's own library of documents
- `reading`: an inquiry as it came, and whether it is one
- `log`: what was asked and answered, and with it replays and limits
- `finding`: passages, quotations, what is redacted
- `desk`: all of it in order, from sealed bytes to sealed bytes
- `outlines`: what the node tells of its documents, and the ledger that is charged for it
- `listening`: the connection on which questions come
"""
