"""Answers from an organization's documents: every sentence is a quotation that was checked, or there is none.

    answerer = Answerer(Library(Path("library")), Embedder(Path("all-minilm-l6-v2")))
    answerer.answer("Who pays for the scaffold?", Caller.operator("builders"), ["contracts"]).text

A document goes one way, a question the other, and `access` stands at every entrance.

- `commands`, `library`: what a person types; all collections, and who may reach them
- `collection`, `catalogue`, `documents`: one collection on disk, its documents' states, their texts
- `ingest`: files in; `parsing` (in a limited child process), `canonical_text` (normalised once, with offsets),
  `personal_data` (masked or refused), `chunks` and `sentences`, `injection` (what is kept back), `embedder`
- `stores`, `lexical`: embeddings in LanceDB or PostgreSQL; BM25, the same over every store
- `retrieval`: the two fused; `gate`: answer or abstain; `sentences_near`, `quoting`, `grammar`: what is quoted
- `verifying`: believes nothing; `answering`: all of it in order, and the port that serving uses
- `questions`, `calibrating`, `calibration`, `evaluating`: how good it is on questions with known answers
- `reading_room`: collections, their documents and a question's findings, as the console shows them
- `erasure`: out again, with a search for what is left and a signed receipt
"""

# What `confide --help` says of each without importing it: the first paragraph of its own help.
SUMMARIES = {
    "rag": "An organization's documents: add, search, ask with checked citations, erase.",
}
