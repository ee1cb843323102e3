"""`confide node plan`: what a run would do on this node, with its own data. Nothing of it leaves.

Memory is an upper bound from the model's configuration, activations after Korthikanti et al. 2022 (section 4.1). The
time of a round is measured: real steps on made-up records of full length, remembered for the agent (speed.py).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confide.errors import ConfideError, SpecificationError
from confide.models.store import ModelStore
from confide.planning.feedback_plan import describe_certainty, describe_question
from confide.planning.run_plan import two_sums, upload_bytes
from confide.runs.deadline import Speed, TooSlow, refuse_too_slow
from confide.runs.specification import Specification, parse_canonical, parse_toml
from rich.console import Console

from confide_client.data.datasets import DataSet, DataSets
from confide_client.data.fitness import try_offer
from confide_client.policy.policy import Policy, load_policy
from confide_client.runs.offers import parse_offer
from confide_client.runs.speed import Speeds
from confide_client.runs.spending import units_in
from confide_client.state import StateFolder

MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """What is said, in order; and why the policy would refuse, if it would."""

    lines: tuple[str, ...]
    warnings: tuple[str, ...]
    refusal: str | None


@dataclass(frozen=True)
class Work:
    """Sizes of one local round."""

    base_parameters: int
    trained_parameters: int
    activation_bytes: int


def plan_of(state: StateFolder, what: str) -> Plan:
    """The plan for a TOML file or a run that was offered. Raises ConfideError when there is no such thing."""
    specification = _specification(state, what)
    data_sets = DataSets(state.root).all()
    entry = data_sets.get(specification.federation.data)
    work = (
        describe_question(specification)
        if specification.asks_feedback
        else f"rounds of {specification.training.local_steps} local steps of {specification.training.batch_size} "
        f"records ({specification.method.name})"
        if specification.trains_model
        else f"rounds that count pairs of tokens, for a vocabulary of {specification.tokenizer.vocabulary}"
    )
    rounds = specification.federation.rounds
    told = work if specification.asks_feedback else f"{rounds} {work}"
    lines = [f"run {specification.name}, specification {specification.digest[:16]}…: {told}"]
    warnings: list[str] = []
    refusal = _refusal(state, specification, entry)
    if entry is None:
        warnings.append(f"data set {specification.federation.data!r} is not registered here: `confide data add`")
    else:
        _about_data(specification, entry, lines, warnings)
        refusal = _about_fitness(state, specification, lines, warnings) or refusal
    if specification.trains_model and not specification.asks_feedback:
        _about_work(state, specification, lines, warnings)
    _about_protection(specification, lines, warnings)
    if entry is not None:
        _about_privacy(state, specification, lines, warnings)
    return Plan(tuple(lines), tuple(warnings), refusal)


def _specification(state: StateFolder, what: str) -> Specification:
    path = Path(what)
    if path.suffix == ".toml" or path.is_file():
        try:
            return parse_toml(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise SpecificationError(f"cannot read {path}: {error}") from error
    folder = state.run(state.find_run(what))
    return parse_canonical(parse_offer((folder / "offer.bin").read_bytes()).specification)


def _refusal(state: StateFolder, specification: Specification, entry: DataSet | None) -> str | None:
    try:
        policy: Policy = load_policy(state.policy)
        policy.check(specification, group=entry.group if entry else specification.federation.data)
        base = ModelStore(state.models).base_of(specification)
        if specification.trains_model:
            from confide.planning.fitness import check

            check(specification, base)
    except ConfideError as error:
        return str(error)
    return None


def _about_data(specification: Specification, entry: DataSet, lines: list[str], warnings: list[str]) -> None:
    training = specification.training
    records = entry.records - entry.evaluation_records
    if specification.asks_feedback:
        lines.append(f"data: what {records} comparisons taught, or this node's own judge; no text of them leaves")
        return
    if not specification.trains_model:
        lines.append(f"data: {records} training records, all counted in every round; the others are not looked at")
        return
    used = training.local_steps * training.batch_size
    lines.append(
        f"data: {records} training and {entry.evaluation_records} evaluation records; "
        f"{math.ceil(records / training.batch_size)} steps see each record once"
    )
    passes = used / records if records else math.inf
    lines.append(
        f"each round takes {used} records, {passes:.2f} passes; the run {passes * specification.federation.rounds:.2f}"
    )
    if passes * specification.federation.rounds > 20:
        warnings.append("each record would be seen more than 20 times: expect the model to learn it by heart")
    if entry.evaluation_records == 0:
        warnings.append("no records are kept for evaluation: this node reports no evaluation metrics")


def _about_fitness(
    state: StateFolder, specification: Specification, lines: list[str], warnings: list[str]
) -> str | None:
    """Try the method on the records; returns why the run should be refused, when it could learn nothing."""
    try:
        found = try_offer(state, specification)
    except ConfideError as error:
        warnings.append(f"the method could not be tried on the records: {error}")
        return None
    if found is None:
        return None
    lines.extend(found.lines())
    warnings.extend(found.warnings())
    return "nothing can be learned from this node's records; its updates would be of no use" if found.hopeless else None


def _about_work(state: StateFolder, specification: Specification, lines: list[str], warnings: list[str]) -> None:
    try:
        base = ModelStore(state.models).path(specification.model.sha256)
        work = _work(specification, base)
    except ConfideError as error:
        warnings.append(f"memory and time cannot be estimated: {error}")
        return
    per_scalar = 4.0 if not specification.sealed else math.ceil(specification.sealing.bits + 4) / 8
    if specification.privacy.shared:
        per_scalar = upload_bytes(specification, _fewest(specification), work.trained_parameters) / max(
            1, work.trained_parameters
        )
    base_bytes = work.base_parameters * (2 if specification.model.dtype == "bfloat16" else 4)
    # Weights, received weights, gradients and both moments of AdamW, all float32.
    trained_bytes = work.trained_parameters * 4 * 5
    memory = base_bytes + trained_bytes + work.activation_bytes
    lines.append(
        f"trained: {work.trained_parameters:,} of {work.base_parameters:,} parameters; each round receives "
        f"{work.trained_parameters * 4 / MIB:.1f} MiB and sends "
        f"about {work.trained_parameters * per_scalar / MIB:.1f} MiB"
    )
    lines.append(
        f"memory: at most about {memory / MIB:,.0f} MiB beside the libraries ({base_bytes / MIB:,.0f} base, "
        f"{trained_bytes / MIB:,.0f} trained, {work.activation_bytes / MIB:,.0f} activations)"
    )
    _about_time(state, specification, base, lines, warnings)


def _work(specification: Specification, base: Path) -> Work:
    from confide.models.trainable import schema_of

    config: dict[str, Any] = json.loads((base / "config.json").read_bytes())
    config = config.get("text_config", config)

    def number(*names: str, default: int) -> int:
        return next((int(config[name]) for name in names if config.get(name)), default)

    layers = number("num_hidden_layers", "n_layer", default=12)
    hidden = number("hidden_size", "n_embd", default=768)
    heads = number("num_attention_heads", "n_head", default=12)
    vocabulary = number("vocab_size", default=50_000)
    stored = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    width = 2 if config.get("dtype", config.get("torch_dtype")) in {"bfloat16", "float16"} else 4
    parameters, trained = stored // width, schema_of(specification, base).size
    length, micro = specification.method.max_length, specification.training.micro_batch_size
    micro = min(micro, specification.training.batch_size)
    scale = 1 if specification.model.dtype == "bfloat16" or specification.training.autocast else 2
    live = 1 if specification.training.gradient_checkpointing else layers
    activations = int(scale * live * length * micro * hidden * (34 + 5 * heads * length / hidden))
    logits = 2 * 4 * length * micro * vocabulary
    return Work(parameters, trained, activations + logits)


def _about_time(
    state: StateFolder, specification: Specification, base: Path, lines: list[str], warnings: list[str]
) -> None:
    from confide_client.training.sharding.steps import processes_for

    settings = state.settings
    if processes_for(specification, settings.processes, settings.max_rank) > 1:
        lines.append("time: not measured, since several processes share a local step")
        return
    try:
        speed = _measured(state, specification, base)
    except ConfideError as error:
        warnings.append(f"the time of a round cannot be measured: {error}")
        return
    entry = DataSets(state.root).all().get(specification.federation.data)
    round_s = speed.round_s(specification, entry.evaluation_records if entry else 0)
    shown = f"{round_s:,.0f}" if round_s >= 10 else f"{round_s:.2g}"
    lines.append(
        f"time: about {shown} s a round on this machine, measured on made-up records of "
        f"{specification.method.max_length} tokens; shorter ones take less, other work on the machine more"
    )
    try:
        refuse_too_slow(specification, round_s)
    except TooSlow as error:
        warnings.append(f"too slow, this node would refuse: {error}")


def _measured(state: StateFolder, specification: Specification, base: Path) -> Speed:
    speeds, settings = Speeds(state.speeds), state.settings
    known = speeds.find(specification, settings)
    if known is not None:
        return known
    import torch
    from confide.planning.timing import time_base

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    measured = time_base(specification, base)
    speeds.keep(specification, settings, measured)
    return measured


def _about_protection(specification: Specification, lines: list[str], warnings: list[str]) -> None:
    if not specification.sealed:
        warnings.append("sealing is off: the coordinator sees this node's update by itself")
    else:
        lines.append(
            f"sealed: the coordinator learns only sums over at least {specification.federation.min_cohort} "
            f"organizations, also together with {_colluding_words(specification)} of them"
        )
        (lines if specification.refuses_differences else warnings).append(two_sums(specification))
    privacy = specification.privacy
    if privacy.unit == "none":
        warnings.append("no differential privacy: the model may remember single records")
    else:
        lines.append(f"privacy: epsilon {privacy.epsilon}, delta {privacy.delta} per {privacy.unit} over the whole run")


def _about_privacy(state: StateFolder, specification: Specification, lines: list[str], warnings: list[str]) -> None:
    if specification.privacy.unit == "none":
        return
    from confide.privacy.counting import counting_plan, describe_counting_plan
    from confide.privacy.plan import unit_plan
    from confide.privacy.plan_words import describe_unit_plan

    try:
        if specification.privacy.shared:
            said, warned = _shared_noise(state, specification)
        else:
            units = units_in(specification, DataSets(state.root).load(specification.federation.data))
            if specification.trains_model:
                said, warned = describe_unit_plan(unit_plan(specification, units))
            else:
                said, warned = describe_counting_plan(counting_plan(specification, units=units)), []
    except ConfideError as error:
        warnings.append(f"privacy cannot be planned: {error}")
        return
    lines.extend(said)
    warnings.extend(warned)


def _fewest(specification: Specification) -> int:
    """The named nodes, or as few as may take part."""
    named = len(specification.federation.nodes)
    given = specification.sealing.colluding
    return named or max(specification.federation.min_cohort, (1 if given is None else given) + 2)


def _colluding_words(specification: Specification) -> str:
    given = specification.sealing.colluding
    return "a third of the others, at least 1," if given is None else str(given)


def _shared_noise(state: StateFolder, specification: Specification) -> tuple[list[str], list[str]]:
    """For the smallest cohort that is allowed, or the named one: how many will come is not known to a node."""
    from confide.models.sent_coordinates import SentCoordinates
    from confide.models.trainable import schema_of
    from confide.privacy.organization import organization_plan
    from confide.privacy.plan_words import describe_organization_plan, describe_shared_unit_plan
    from confide.privacy.shared import check_units
    from confide.privacy.shared_units import shared_unit_plan

    base = ModelStore(state.models).path(specification.model.sha256)
    trained = SentCoordinates(specification, schema_of(specification, base)).most
    members = _fewest(specification)
    if specification.privacy.unit == "organization":
        plan = organization_plan(specification, members=members, trained=trained)
        said, warned = (
            describe_certainty(specification, plan) if specification.asks_feedback else describe_organization_plan(plan)
        )
    else:
        check_units(specification, units_in(specification, DataSets(state.root).load(specification.federation.data)))
        said, warned = describe_shared_unit_plan(shared_unit_plan(specification, members=members, trained=trained))
    if not specification.federation.nodes:
        said.insert(1, f"as if {members} organizations took part, the fewest that are allowed; more make it better")
    return said, warned


def show(plan: Plan, console: Console) -> bool:
    """Print it; returns whether the policy allows the run."""
    for line in plan.lines:
        console.print(line, highlight=False, markup=False)
    for warning in plan.warnings:
        console.print(f"! {warning}", style="yellow", highlight=False, markup=False)
    if plan.refusal is None:
        console.print("the policy allows it", style="green")
    else:
        console.print(f"refused: {plan.refusal}", style="bold red", highlight=False, markup=False)
    return plan.refusal is None
