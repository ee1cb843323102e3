"""OpenAI's API over HTTP: a request is read, charged for, answered by an engine, and its answer written as it comes.

- `app`: the ASGI application; `routes`, `texts`: what each route does; `http`: bodies, streams, peers that leave
- `wire`: requests as clients send them; `answers`: the texts while they come; `replies`: answers in OpenAI's form
- `accounting`: what one request may take and took; `metrics`: what Prometheus reads
"""
