"""Engines: the in-process one on transformers and PEFT, and one that stands elsewhere (vLLM)."""
