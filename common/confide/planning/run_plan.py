"""What a run will do, in words and numbers, before anybody is asked: `confide run plan spec.toml`.

Everything here follows from the specification, the number of nodes and the base model's configuration. What depends
on a node's own data (number of records, noise, spend), `confide node plan` says on the node.

    print(render(specification, nodes=4, base=Path("model-folder")))
"""

from dataclasses import dataclass
from pathlib import Path

from confide.codec.layout import VectorLayout
from confide.errors import FailureName, ProtocolFailure, SpecificationError
from confide.planning.feedback_plan import describe_certainty, question_lines
from confide.runs import parameters
from confide.runs.schedule import describe_clip
from confide.runs.specification import Specification
from confide.sealing.primitives import scalars

_SMALL_MESSAGES_BYTES = 4096
"""Of one node and round beside model and update: instruction, list, signatures, shares. Measured at n = 4."""

_SUSTAINED_FLOPS = {"one CPU core": 4e10, "one data-centre GPU (bfloat16)": 2e14}
"""What training reaches in practice; for orders of magnitude, not promises."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The base model and what of it is sent, in scalars."""

    base: int
    trainable: int
    sent: tuple[int, ...]
    """Scalars that a node sends in the first rounds, which all others repeat in turn."""
    hidden: int
    layers: int
    trained_layers: int


def measure(specification: Specification, base: Path) -> Size:
    """Read the sizes from a model folder's configuration, without its weights."""
    from confide.models.architecture import empty_model, load_config
    from confide.models.sent_coordinates import SentCoordinates
    from confide.models.trainable import schema_of

    schema = schema_of(specification, base)
    coordinates = SentCoordinates(specification, schema)
    config = load_config(base).get_text_config()
    layers = int(config.num_hidden_layers)
    full = specification.adapter.kind == "full"
    first = layers if specification.adapter.kind == "none" else specification.adapter.first_layer
    return Size(
        base=sum(parameter.numel() for parameter in empty_model(specification, base).parameters()),
        trainable=schema.size,
        sent=tuple(coordinates.count(number) for number in range(1, coordinates.phases + 1)),
        hidden=int(config.hidden_size),
        layers=layers,
        trained_layers=layers if full else max(0, layers - first),
    )


def upload_bytes(specification: Specification, nodes: int, sent: int) -> int:
    """Of one node in a slot in which so many scalars are sent."""
    if not specification.sealed:
        return 4 * sent
    if specification.privacy.shared:
        from confide.privacy.shared import slot_noise

        noise = slot_noise(specification, sent, members=nodes)
        return noise.layout(specification, sent, scalars=scalars.COUNT, rotation_seed=bytes(32)).wire_bytes
    layout = VectorLayout(
        parameters=sent,
        scalars=scalars.COUNT,
        bits=specification.sealing.bits,
        members=nodes,
        clip=specification.federation.clip_norm or 1.0,
        rotation_seed=bytes(32),
    )
    return layout.wire_bytes


def flops_per_round(specification: Specification, size: Size) -> float:
    """Of one node: 2 P a token forward, 4 P backward through what is trained and above (Kaplan et al. 2020, 2.1)."""
    training, method = specification.training, specification.method
    tokens = training.local_steps * training.batch_size * method.max_length
    trained_share = size.trained_layers / max(1, size.layers)
    backward = 4.0 if specification.adapter.kind == "full" else 2.0
    return tokens * size.base * (2.0 + backward * trained_share)


def memory_bytes(specification: Specification, size: Size) -> int:
    """Of one node while training: weights, gradients, optimizer, received model and update, activations."""
    training = specification.training
    full = specification.adapter.kind == "full"
    width = 4 if full or specification.model.dtype == "float32" else 2
    states = {"adamw": 2, "sgd": 0}[training.optimizer]
    trainable = size.trainable * 4 * (1 + 1 + states + 3)
    tokens = training.micro_batch_size * specification.method.max_length
    # About 34 values a token, layer and hidden unit stay for the backward pass (Korthikanti et al. 2022, 4.1).
    activations = 34 * tokens * size.hidden * size.trained_layers * width // 2
    if training.gradient_checkpointing:
        activations //= max(1, size.trained_layers // 2)
    return (0 if full else size.base * width) + trainable + activations


def group_sizes(nodes: int, groups: int) -> tuple[int, ...]:
    """Nodes in equal groups, the larger ones first. Raises SpecificationError for more groups than nodes.

    >>> group_sizes(1000, 10)[:2], group_sizes(7, 3)
    ((100, 100), (3, 2, 2))
    """
    if not 1 <= groups <= nodes:
        raise SpecificationError(f"{groups} groups of {nodes} nodes; there are from 1 to {nodes} groups")
    return tuple(nodes // groups + (number < nodes % groups) for number in range(groups))


def refuse_impossible(specification: Specification, nodes: int) -> None:
    """Raises ProtocolFailure PARAMETERS_IMPOSSIBLE when this run cannot be kept with this many nodes in a sum."""
    if nodes < specification.federation.min_cohort:
        raise ProtocolFailure(
            FailureName.PARAMETERS_IMPOSSIBLE,
            f"{nodes} nodes, but federation.min_cohort is {specification.federation.min_cohort}; more must take part",
        )
    if specification.sealed:
        parameters.planned(specification, nodes)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 5400 else f"{seconds / 3600:.2g} h"


def _work(specification: Specification, nodes: int) -> list[str]:
    training, federation = specification.training, specification.federation
    outer = federation.outer
    lines = [
        f"run {specification.name}, specification {specification.digest[:16]}",
        f"  {federation.rounds} rounds with {nodes} nodes (never fewer than {federation.min_cohort} in a sum), "
        f"each on its data set {federation.data!r}",
    ]
    if not specification.trains_model:
        asked = specification.tokenizer
        down, up = 8 * (asked.vocabulary + asked.candidates), upload_bytes(specification, nodes, asked.candidates)
        return [
            *lines,
            f"  a round on a node: count up to {asked.candidates:,} pairs of tokens in all training records",
            f"  byte-level BPE with at most {asked.vocabulary:,} tokens, {len(asked.special_tokens)} of them special; "
            "no base model",
            f"  traffic of one node and round: at most {_bytes(down)} down, {_bytes(up)} up",
        ]
    if specification.asks_feedback:
        return [*lines[:1], *("  " + line for line in question_lines(specification, nodes))]
    return [
        *lines,
        *_warm_start(specification),
        f"  a round on a node: {training.local_steps} steps of {training.batch_size} records, {training.optimizer} at "
        f"{training.learning_rate:g}, method {specification.method.name}",
        f"  base model {specification.model.name} ({specification.model.sha256[:16]}), trained: "
        + (
            "all parameters"
            if specification.adapter.kind == "full"
            else f"LoRA of rank {specification.adapter.rank}, aggregated by {specification.adapter.aggregation!r}"
        ),
        f"  outer step: {outer.name}, learning rate {outer.learning_rate:g}, momentum {outer.momentum:g}"
        + (", Nesterov" if outer.nesterov else "")
        + f"; weights {federation.weights}",
        *([] if federation.clip_norm is None else ["  " + describe_clip(specification)]),
    ]


def _warm_start(specification: Specification) -> list[str]:
    federation = specification.federation
    if not federation.warm_start_rounds:
        return []
    return [f"  warm start: {federation.warm_start_rounds} rounds of {federation.warm_start_steps} steps first"]


def _costs(specification: Specification, nodes: int, size: Size, members: int) -> list[str]:
    rounds, turns = specification.federation.rounds, len(size.sent)
    each = [upload_bytes(specification, members, count) for count in size.sent]
    down, up = 4 * size.trainable, sum(each) / turns
    sent = sum(each[number % turns] for number in range(rounds))
    whole = nodes * ((down + _SMALL_MESSAGES_BYTES) * rounds + sent)
    flops = flops_per_round(specification, size)
    times = ", ".join(f"{_duration(flops / speed)} on {name}" for name, speed in _SUSTAINED_FLOPS.items())
    return [
        f"  {size.trainable:,} of {size.base:,} parameters are trained" + _in_turn(size),
        f"  traffic of one node and round: {_bytes(down)} down, {_bytes(up)} up "
        f"({8 * sum(each) / max(1, sum(size.sent)):.3g} bits a parameter that travels), about "
        f"{_bytes(_SMALL_MESSAGES_BYTES)} of small messages; whole run, all nodes: {_bytes(whole)}",
        f"  memory of one node: about {_bytes(memory_bytes(specification, size))} for model and training, beside the "
        "program itself (about 0.5 GB)",
        f"  time of one node and round, if every record fills {specification.method.max_length} tokens: {times}",
    ]


def _in_turn(size: Size) -> str:
    if size.sent == (size.trainable,):
        return ""
    counts = sorted(set(size.sent))
    between = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    turns = "" if len(size.sent) == 1 else f", another part in each of {len(size.sent)} rounds"
    return f"; of them {between} are sent in a round{turns}"


def two_sums(specification: Specification) -> str:
    """What two sums of one run or of several tell, as a sentence."""
    if not specification.sealed:
        return "every update is seen by itself"
    if specification.privacy.unit == "organization":
        return "two sums: their difference is noised as each sum is; a missing organization costs only itself"
    if specification.sealing.differences == "accepted":
        return (
            "DIFFERENCES OF SUMS ARE ACCEPTED: an organization that is missing from one of two sums, in this run or "
            "another, can be told from their difference (its metrics almost exactly, its update roughly)"
        )
    return (
        "two sums, of this run or others: they differ by whole blocks of the roster, never by one organization; where "
        "a member of the only block is missing before it has uploaded, the run pauses"
    )


def _protection(specification: Specification, sizes: tuple[int, ...]) -> list[str]:
    sealing, privacy = specification.sealing, specification.privacy
    lines = ["what is protected:"]
    if specification.sealed:
        if len(sizes) > 1:
            lines.append(
                f"  {len(sizes)} sums are seen in every round, one of each group of the roster, which the root fixes: "
                f"{sizes[-1]} to {sizes[0]} organizations each; of each sum:"
            )
        lines.append("  one sum: " + parameters.words(parameters.planned(specification, sizes[-1])))
        if specification.refuses_differences or privacy.unit == "organization":
            lines.append("  " + two_sums(specification))
        if privacy.unit == "none":
            lines.append(
                f"  updates, weights and metrics travel as {sealing.bits}-bit integers under masks; losses are sums too"
            )
        else:
            lines.append("  updates travel as integers under masks; under privacy neither weights nor metrics leave")
    if specification.asks_feedback:
        lines.append("  no comparison and no reward model leaves a node: sums of opinions on public answers do")
    if not specification.trains_model:
        lines.append("  no word leaves a node: sums of counts do, over pairs that follow from public merges")
    lines.append("  texts stay on the nodes; no code travels; only members of the signed roster take part")
    lines.append("what is not protected:")
    if not specification.sealed:
        lines.append("  SEALING IS OFF: the coordinator sees every single organization's update. For research only.")
    elif not specification.refuses_differences and privacy.unit != "organization":
        lines.append("  " + two_sums(specification))
    if specification.reproducible:
        lines.append("  REPRODUCIBLE: the order of records follows from a public seed. For simulations only.")
    if privacy.unit == "none" and specification.asks_feedback:
        lines.append("  no differential privacy: a sum over few organizations tells what each may have said")
    elif privacy.unit == "none" and specification.trains_model:
        lines.append("  no differential privacy: the model may remember and repeat training text")
    elif privacy.unit == "none":
        lines.append(
            "  no differential privacy: a frequent name becomes a token, and a coordinator that lies about sums can "
            f"learn the summed count of any string up to {specification.tokenizer.max_token_bytes} bytes"
        )
    lines.append("  a member can send a wrong update (its size is bounded, its honesty is not)")
    lines.append("  the coordinator and every member see each round's model")
    averaged = specification.adapter.kind == "lora" and specification.adapter.aggregation == "average"
    if averaged and specification.trains_model:
        lines.append("note: A and B of LoRA are averaged separately, which is not the average of the products B A")
    return lines


def _privacy(specification: Specification, nodes: int, trainable: int | None) -> list[str]:
    if specification.privacy.unit == "none":
        return []
    if specification.asks_feedback and trainable is not None:
        from confide.privacy.organization import organization_plan

        plan = organization_plan(specification, members=nodes, trained=trainable)
        lines, warnings = describe_certainty(specification, plan)
        return [*("  " + line for line in lines), *("  WARNING: " + warning for warning in warnings)]
    from confide.privacy.plan_words import public_plan

    lines, warnings = public_plan(specification, members=nodes, trained=trainable)
    return [*("  " + line for line in lines), *("  WARNING: " + warning for warning in warnings)]


def render(specification: Specification, *, nodes: int, base: Path | None = None, groups: int = 1) -> str:
    """The plan as text. `base` is a model folder; without it sizes, traffic, memory and time are left out.

    groups: of the roster, taken to be of equal size.
    Raises ProtocolFailure PARAMETERS_IMPOSSIBLE, SpecificationError or ModelError for a run that cannot work.
    """
    sizes = group_sizes(nodes, groups)
    if not specification.sealed:
        refuse_impossible(specification, nodes)
    else:
        for members in set(sizes):
            refuse_impossible(specification, members)
    lines, trainable = _work(specification, nodes), None
    if specification.asks_feedback:
        trainable = specification.feedback.numbers
    elif specification.trains_model and base is not None:
        from confide.planning.fitness import check

        check(specification, base)
        size = measure(specification, base)
        trainable = max(size.sent)
        lines += _costs(specification, nodes, size, members=sizes[0])
    elif specification.trains_model:
        lines.append("  (give --model-folder for traffic, memory and time)")
    lines += _protection(specification, sizes)
    lines += _privacy(specification, sizes[-1], trainable)
    return "\n".join(lines)
