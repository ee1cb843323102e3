"""Data sets of this node: registered, read, encoded; never sent.

- `datasets`: registered by name, split once; `readers`, `rows`: their records, from the file itself
- `fitness`: can a method learn from them; `token_files`: an encoded corpus
"""
