"""Training.

Speed (`command`, `speed`), fewer rounds (`diloco`), corpora on disk (`corpus`), simulation (`simulation`),
and tokenizers (`tokenizer`).
"""
