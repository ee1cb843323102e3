"""The closed set of what a node may report beside its update, each with its range."""

from enum import StrEnum


class Metric(StrEnum):
    """Everything a node may report beside its update. Unknown names are refused: METRIC_NOT_ALLOWED."""

    TRAIN_LOSS = "train_loss"
    EVAL_LOSS = "eval_loss"
    EVAL_ACCURACY = "eval_accuracy"
    EVAL_MACRO_F1 = "eval_macro_f1"
    EVAL_BITS_PER_BYTE = "eval_bits_per_byte"
    EVAL_EXACT_MATCH = "eval_exact_match"
    EVAL_NDCG_AT_10 = "eval_ndcg_at_10"
    EVAL_RECALL_AT_10 = "eval_recall_at_10"
    UPDATE_NORM = "update_norm"

    @property
    def ceiling(self) -> float:
        """Values are clipped to [0, ceiling] before they are sent."""
        return _UPPER[self]


_UPPER: dict[Metric, float] = {
    Metric.TRAIN_LOSS: 20.0,
    Metric.EVAL_LOSS: 20.0,
    Metric.EVAL_ACCURACY: 1.0,
    Metric.EVAL_MACRO_F1: 1.0,
    Metric.EVAL_BITS_PER_BYTE: 32.0,
    Metric.EVAL_EXACT_MATCH: 1.0,
    Metric.EVAL_NDCG_AT_10: 1.0,
    Metric.EVAL_RECALL_AT_10: 1.0,
    Metric.UPDATE_NORM: 1e4,
}
