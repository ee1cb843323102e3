"""The served model: an OpenAI-compatible endpoint over engines that know models by their content's hash only.

- `process`, `app`, `http`: the process, its routes, HTTP around them
- `wire`, `answers`, `replies`, `failures`: requests, what answers them, and in which form
- `port`, `engines`: what an engine is; `catalogue`, `adapters`: what is served under which name
- `access`, `keyed_access`, `rates`: who may ask, and how much; `documents`: answers with citations
- `metrics`: what Prometheus reads
"""
