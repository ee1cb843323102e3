"""How Confide's messages travel.

- `envelope`: inside Flower's records, which each side's adapter makes
- `messages`: protobuf messages from the other side
- `control`, `admin`, `inquiries`: the clients of the coordinator's gRPC services (`admin` of the parts `admin_calls`,
  `admin_runs`, `admin_members`, `admin_models`); `failures`: errors across them
"""
