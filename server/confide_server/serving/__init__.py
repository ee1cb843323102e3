"""The served model: an OpenAI-compatible endpoint over engines that know models by their content's hash only.

- `process`: what `confide serve` starts; `endpoint`: OpenAI's API over HTTP, charged and counted
- `port`, `engines`: what an engine is; `encoding`: texts to tokens
- `catalogue`, `adapters`: what is served under which name
- `access`, `keyed_access`, `rates`: who may ask, and how much
- `documents`, `cited_answers`: answers with citations
- `failures`: what is answered when a request is refused
"""
