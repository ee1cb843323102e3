"""The local step in several processes of one node (FSDP2). Imports nothing: the launcher needs little of it.

- `steps`: the trainer's side; `launch`: starts the processes; `worker`: one of them
- `job`, `reports`: what they tell each other
"""
