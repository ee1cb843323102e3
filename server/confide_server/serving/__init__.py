"""The served model: an OpenAI-compatible endpoint over engines that know models by their content's hash only.

- `process`, `app`, `routes`, `http`: the process, its routes, HTTP around them
- `wire`, `encoding`, `texts`, `answers`, `replies`, `failures`: requests, what answers them, and in which form
- `port`, `engines`: what an engine is; `catalogue`, `adapters`: what is served under which name
- `access`, `keyed_access`, `rates`, `accounting`: who may ask, how much, and what it took
- `documents`, `cited_answers`: answers with citations
- `metrics`: what Prometheus reads
"""
