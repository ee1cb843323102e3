"""The local step in several processes of one node (FSDP2). Imports nothing: the launcher needs little of it."""
