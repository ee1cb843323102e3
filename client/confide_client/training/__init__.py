"""The local step: train the received tensors on this node's own shard and give back the difference.

- `trainer`: one run's training on this node; `loop`, `optimizers`, `fragments`: its steps
- `draws`: where order, dropout and masked positions come from
- `private`, `protected`: under record- or user-level privacy; `tokens`: a tokenizer run
- `opinions`, `candidates`: a feedback run
- `sharding`, `shards`: in several processes; `checkpoint`: going on after a restart
- `evaluation`, `failures`: metrics; what goes wrong, without text that could quote data
"""

from confide_client.training.trainer import LocalData, LocalTrainer

__all__ = ["LocalData", "LocalTrainer"]
