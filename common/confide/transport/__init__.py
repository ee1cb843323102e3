"""How Confide's messages travel.

- `envelope`: inside Flower's records, which each side's adapter makes
- `messages`: protobuf messages from the other side
- `control`, `admin`, `inquiries`: the clients of the coordinator's gRPC services; `failures`: errors across them
"""
