"""Base models pinned by hash, what of them is trained, and how the result is exported."""
