"""The demo's run: what is asked of the nodes, written as the specification that an administrator would write."""

from confide.runs.specification import Specification, parse_toml

_TOML = """
version = 1
name = "demo"
seed = {seed}

[model]
sha256 = "{sha256}"
name = "{name}"
dtype = "{dtype}"

[adapter]
kind = "lora"
rank = 8
alpha = 32.0
target_modules = ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
first_layer = {first_layer}
aggregation = "{aggregation}"

[method]
name = "sft"
max_length = 256

[training]
local_steps = {local_steps}
batch_size = 8
micro_batch_size = 4
learning_rate = 3e-3

[federation]
rounds = {rounds}
data = "shard"
min_cohort = {min_cohort}
clip_norm = 12.0

[sealing]
kind = "{sealing}"
colluding = {colluding}
"""


def specification(
    *,
    sha256: str,
    name: str,
    dtype: str,
    layers: int,
    rounds: int,
    nodes: int,
    sealing: str,
    aggregation: str = "average",
    local_steps: int = 3,
    seed: int = 7,
    privacy: str = "",
) -> Specification:
    """LoRA on the last 40% of the layers; three of four organizations would do, were they not one block.

    privacy: a section [privacy] as TOML; "" for none.
    """
    text = _TOML.format(
        seed=seed,
        sha256=sha256,
        name=name,
        dtype=dtype,
        first_layer=layers - max(1, round(0.4 * layers)),
        aggregation=aggregation,
        local_steps=local_steps,
        rounds=rounds,
        min_cohort=max(1, min(3, nodes - 1)) if nodes > 2 else nodes,
        sealing=sealing,
        colluding=1 if nodes >= 3 else 0,
    )
    return parse_toml(text + privacy, "the demo's specification")
