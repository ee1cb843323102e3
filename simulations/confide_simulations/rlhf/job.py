"""The demo's runs: a reward head on frozen sentence embeddings, sealed, without privacy and at three epsilons."""

from confide.runs.specification import Specification, parse_toml

ROUNDS, BATCH_SIZE, CLIP, DELTA = 12, 1024, 0.5, 1e-5
LEARNING_RATE, MOMENTUM = 15.0, 0.9
EPSILONS = (8.0, 3.0, 1.0)
MAX_LENGTH = 64

_TOML = """
version = 1
name = "{name}"
seed = 7

[model]
sha256 = "{sha256}"
name = "all-minilm-l6-v2"

[adapter]
kind = "none"

[method]
name = "reward"
max_length = {max_length}

[training]
local_steps = 1
batch_size = {batch_size}
micro_batch_size = 128
learning_rate = {learning_rate}
optimizer = "sgd"
max_grad_norm = 0.0

[federation]
rounds = {rounds}
data = "{data}"
min_cohort = {nodes}
{clip}

[federation.outer]
momentum = {momentum}
nesterov = true

[sealing]
colluding = 1
max_missing = 0
{privacy}
"""


def specification(sha256: str, *, nodes: int, epsilon: float | None, data: str = "shard") -> Specification:
    """epsilon None: without privacy. Nobody may be missing: four organizations are one block, which waits anyway."""
    privacy = "" if epsilon is None else (
        f'[privacy]\nunit = "record"\nepsilon = {epsilon}\ndelta = {DELTA}\nclip = {CLIP}\nnoise = "shared"\n'
    )  # fmt: skip
    return parse_toml(
        _TOML.format(
            name="reward" if epsilon is None else f"reward-epsilon-{epsilon:g}", sha256=sha256, max_length=MAX_LENGTH,
            batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, rounds=ROUNDS, nodes=nodes, momentum=MOMENTUM,
            data=data, clip="clip_norm = 40.0" if epsilon is None else "", privacy=privacy,
        ),
        "the demo's specification",
    )  # fmt: skip
