"""The control and administration services over gRPC and mTLS, and who may call what of them.

- `server`, `passage`: the port; `access`, `endpoint`: who calls, and whether that one may, before a request is parsed
- `control`, `admin`, `inquiries`: the three services
"""
