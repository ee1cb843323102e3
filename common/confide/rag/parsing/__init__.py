"""From a file's bytes to blocks of text, in a child process with limits.

- `parent`, `child`: the process that asks, and the one that parses; `blocks`: what comes back
- `pdf`, `docx` (with `docx_parts`), `html`, `markdown`, `plain`: one module a format
"""
