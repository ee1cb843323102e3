"""An organization's documents on its own machine: in, found, quoted, and out again. Used by both sides.

A document goes one way, a question the other, and `access` stands at every entrance.

- `library`: all collections, and who may reach them
- `collection`, `catalogue`, `documents`: one collection on disk, its documents' states, their texts
- `ingest`: files in; `parsing` (in a limited child process), `canonical_text` (normalised once, with offsets),
  `personal_data` (masked or refused), `chunks` and `sentences`, `injection` (what is kept back), `embedder` over one
  of the `encoders`
- `stores`, `lexical`: embeddings in LanceDB or PostgreSQL; BM25, the same over every store
- `retrieval`: the two fused; `reranker`: the first of them read again by a cross-encoder
- `sentences_near`, `quoting`, `citing`: what is quoted, and how
- `gate`, `calibration`: answer or abstain
- `verifying`: believes nothing of what made an answer
- `erasure`: out again, with a search for what is left and a signed receipt
"""
