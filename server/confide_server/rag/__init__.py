"""Answers from an organization's documents: every sentence is a quotation that was checked, or there is none.

    answerer = Answerer(Library(Path("library")), Embedder(Path("all-minilm-l6-v2")))
    answerer.answer("Who pays for the scaffold?", Caller.operator("builders"), ["contracts"]).text

The documents themselves (in, found, quoted, out) are in `confide.rag`.

- `commands`: what a person types
- `answering`: search, gate, quotation and check in order, and the port that serving uses
- `grammar`: a language model that chooses among sentences, and can write nothing else
- `inquiring`: what is shown of other organizations' answers (`confide.inquiries`)
- `questions`, `calibrating`, `evaluating`: how good it is on questions with known answers
- `reading_room`: collections, their documents and a question's findings, as the console shows them
"""

# What `confide --help` says of each without importing it: the first paragraph of its own help.
SUMMARIES = {
    "rag": "An organization's documents: add, search, ask with checked citations, erase.",
}
