"""The coordinator: directs rounds over organizations whose updates it cannot see.

- `coordinator`: its one process; `rounds`: runs from offer to last round
- `fleet`: how instructions reach nodes; `api`: what may be asked from outside; `membership`: enrolment
- `state`: what it remembers
- `admin_cli`, `console`: administrators' commands and pages
- `serving`, `rag`: the released model as an endpoint, with an organization's documents
- `bounded_http`, `quota`: connections within limits
"""
