"""From a file's bytes to blocks of text, in a child process with limits.

- `parent`, `child`: the process that asks, and the one that parses; `blocks`: what comes back
- `pdf`, `docx`, `html`, `markdown`, `plain`: one module a format; `pdf_headings`: what in a pdf is a heading;
  `docx_parts`: a docx's notes, headers and footers
"""
