"""Engines: the in-process one on transformers and PEFT, and one that stands elsewhere (vLLM).

- `local`, `adapted_model`, `padded_batch`, `rows`: in process, adapters side by side in one batch
- `sampling`, `grammar`, `text_stream`: the next token, held to a form, as text
- `embedding`: sentence embeddings; `upstream`, `upstream_wire`, `turns`: an engine that stands elsewhere,
  what it says, and what it must not be asked at once
"""
