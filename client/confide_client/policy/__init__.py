"""What this node allows.

- `policy`: policy.toml, read anew for every decision; `retrieval`: its section on questions
"""
