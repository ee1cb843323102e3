"""The local step: train the received tensors on this node's own shard and give back the difference."""

from confide_client.training.trainer import LocalData, LocalTrainer

__all__ = ["LocalData", "LocalTrainer"]
