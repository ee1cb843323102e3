"""Answers from an organization's documents: every sentence is a quotation that was checked, or there is none.

    from confide_server.rag.library import Library
    library = Library(Path("library"))
    library.answer("Who pays for the scaffold?", caller, ["contracts"])

A document goes one way: parsing/ (in a limited child process) -> canonical_text (normalised once, with offsets) ->
personal_data (masked or refused) -> chunks -> embedder -> stores/ and lexical. A question goes the other: retrieval ->
gate (answer or abstain) -> quoting -> verifying. `access` stands at every entrance.
"""

# What `confide --help` says of each without importing it: the first paragraph of its own help.
SUMMARIES = {
    "rag": "An organization's documents: add, search, ask with checked citations, erase.",
}
