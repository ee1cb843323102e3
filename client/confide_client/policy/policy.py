"""What this node allows: policy.toml, read anew for every decision. The default allows nothing.

>>> policy = parse_policy('''
... version = 1
... consortium_root = "%s"
... methods = ["sft"]
... ''' % ("0" * 64))
>>> policy.min_cohort, policy.sealing, policy.approval
(3, 'required', 'ask')
"""

import re
import tomllib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from confide import canonical
from confide.errors import NotNow, PolicyRefusal
from confide.runs.budget import Budget
from confide.runs.sections import Name, Sha256
from confide.runs.specification import Specification
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from confide_client.policy.retrieval import Retrieval

Unit = Literal["none", "record", "user", "organization"]
HardwarePart = Literal["cores", "memory", "vector_units", "accelerator"]
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEK_MINUTES = 7 * 24 * 60
_CORRECTED_S = 60
"""After which it is worth asking again whether a policy that cannot be read was corrected."""
_HOURS = re.compile(r"(?:(?P<days>[a-z,-]+) )?(?P<from>\d\d:\d\d)-(?P<to>\d\d:\d\d)")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class GroupBudget(Budget):
    """The most privacy that may ever be spent on a group of data sets, over all runs."""

    user_key: str | None = None
    """The field that names a record's user. Runs that protect users go by this one, or are refused."""


class FeedbackRules(_Frozen):
    """What this node says of public answers, where `methods` allows "feedback". Without this section: nothing."""

    purposes: tuple[Literal["scores", "gate", "pairs"], ...] = ()
    """ "scores": a number an answer; "gate": whether a candidate's answers are better than a baseline's; "pairs":
    whether a candidate prefers what this node's own comparisons prefer, by more than its base does."""
    answers_a_day: int = Field(default=0, ge=0)
    """Most answers that are judged in 24 hours, over all runs."""
    judge: str = ""
    """Folder of this node's own reward model; empty: one is fitted to the data set's comparisons, in memory."""


class Policy(_Frozen):
    """Every field that is left out denies, or is the stricter choice."""

    version: Literal[1]
    consortium_root: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """The root's public key. Empty: no consortium is obeyed."""
    allow_demo_root: bool = False
    """A demo's root lies on the same machine as its members: never for real data."""
    methods: tuple[str, ...] = ()
    models: tuple[Sha256, ...] = ()
    """Base models by hash, as `confide model add` prints them."""
    data_sets: tuple[Name, ...] = ()
    min_cohort: int = Field(default=3, ge=1)
    """Fewest organizations in any sum that this node's update is in."""
    max_rounds: int = Field(default=0, ge=0)
    max_local_steps: int = Field(default=0, ge=0)
    """Optimizer steps a round."""
    max_attempts: int = Field(default=2, ge=1)
    """Times that one model may be trained on."""
    training_hours: tuple[str, ...] = ()
    """Local time, e.g. "00:00-24:00" or "mon-fri 20:00-06:00". Training outside is refused."""
    sealing: Literal["required", "optional"] = "required"
    waive_colluding: bool = False
    """Accept runs that promise nothing against a coordinator that colludes with a node (colluding = 0)."""
    differences: Literal["refused", "accepted"] = "refused"
    """accepted: this node's update may be learned from two sums of which one lacks it (docs/sealing.md)."""
    reproducible: bool = False
    """Accept runs whose order of records and dropout follow from a seed that everybody knows."""
    privacy_units: tuple[Unit, ...] = ()
    """Which differential privacy a run may have; "none" must be written to allow runs without."""
    shared_noise: bool = False
    """Accept record- and user-level runs whose noise all nodes add together inside the sealed sum: the promise then
    rests on sealing, and on as many honest nodes as the run's plan says."""
    budgets: dict[Name, GroupBudget] = {}
    """Per data set group: what may be spent in all. A private run needs one."""
    canaries: bool = False
    """Consent to planting made-up records into training for a privacy audit."""
    feedback: FeedbackRules | None = None
    """Which opinions on public answers may be asked for; left out: none."""
    approval: Literal["auto", "ask"] = "ask"
    """ask: a person approves each run with `confide node approve`. auto: what the policy allows and this node's records
    can teach needs no person; a run that could learn nothing here asks one all the same."""
    unfit_records: Literal["skip", "ask"] = "skip"
    """Of records that a run's method cannot learn from. skip: they are left out, counted and named in this node's log.
    ask: with approval = "auto" a run with such records waits for a person."""
    hardware: tuple[HardwarePart, ...] = ()
    """What of this machine the coordinator is told, for people, when this node accepts a run."""
    retrieval: Retrieval | None = None
    """Which questions this node's own index answers; None: none."""

    def check_root(self, root_public: bytes, demo: bool) -> None:
        """Raise PolicyRefusal unless this is the consortium that the node obeys."""
        if self.consortium_root != root_public.hex():
            stated = self.consortium_root[:16] or "none"
            _refuse(
                f"the consortium's root key is {root_public.hex()[:16]}…; the policy obeys {stated}. "
                "Compare the key with your consortium and set consortium_root in policy.toml"
            )
        if demo and not self.allow_demo_root:
            _refuse("this is a demo's root, which lies beside its members; a production node does not obey it")

    def check(self, specification: Specification, *, group: str) -> None:
        """Raise PolicyRefusal unless the policy allows this run on a data set of this group."""
        federation, training, sealing = specification.federation, specification.training, specification.sealing
        _member("method", specification.method.name, self.methods, "methods")
        if specification.trains_model:
            _member("base model", specification.model.sha256, self.models, "models")
        _member("data set", federation.data, self.data_sets, "data_sets")
        _at_least("federation.min_cohort", federation.min_cohort, self.min_cohort, "min_cohort")
        if federation.nodes:
            _at_least("the number of named nodes", len(federation.nodes), self.min_cohort, "min_cohort")
        _at_most("federation.rounds", federation.rounds, self.max_rounds, "max_rounds")
        _at_most("training.local_steps", training.local_steps, self.max_local_steps, "max_local_steps")
        _at_most("sealing.max_attempts", sealing.max_attempts, self.max_attempts, "max_attempts")
        if not specification.sealed and self.sealing == "required":
            _refuse(
                "sealing.kind is none, so the coordinator would see this node's update by itself; the policy requires "
                'sealing. Seal the run, or set sealing = "optional" in policy.toml for research'
            )
        if specification.sealed and sealing.colluding == 0 and not self.waive_colluding:
            _refuse(
                "sealing.colluding is 0; the policy requires at least 1. "
                "Raise it, or set waive_colluding = true in policy.toml"
            )
        if specification.sealed and sealing.differences == "accepted" and self.differences == "refused":
            _refuse(
                'sealing.differences is "accepted": the coordinator may learn this node\'s update from two sums, if '
                'one lacks it. Leave it "refused", or set differences = "accepted" in policy.toml'
            )
        if specification.reproducible and not self.reproducible:
            _refuse(
                "the run is reproducible: its seed, which everybody knows, decides the order of this node's records. "
                "Leave reproducible out, or set reproducible = true in policy.toml, for simulations"
            )
        if specification.asks_feedback:
            self._check_feedback(specification)
        self._check_privacy(specification, group)

    def _check_feedback(self, specification: Specification) -> None:
        asked, allowed = specification.feedback, self.feedback
        if allowed is None or asked.purpose not in allowed.purposes:
            _refuse(
                f"FEEDBACK_FORBIDDEN: feedback of purpose {asked.purpose!r} is not allowed by this node's policy; add "
                "it to purposes under [feedback] in policy.toml"
            )
        if len(asked.names) > allowed.answers_a_day:
            _refuse(
                f"FEEDBACK_LIMIT: {len(asked.names)} answers are asked about, more than the policy allows in a day. "
                "Ask about fewer, or raise answers_a_day under [feedback] in policy.toml"
            )

    def _check_privacy(self, specification: Specification, group: str) -> None:
        privacy = specification.privacy
        if privacy.unit not in self.privacy_units:
            _refuse(
                f"privacy.unit is {privacy.unit!r}; the policy allows {_listed(self.privacy_units)}. "
                "Change the run, or add the unit to privacy_units in policy.toml"
            )
        if privacy.unit == "none":
            return
        if privacy.noise == "shared" and not self.shared_noise:
            _refuse(
                'privacy.noise is "shared": this node\'s update alone would not hold enough noise, only the sealed sum '
                'does. Use noise = "own", or set shared_noise = true in policy.toml'
            )
        budget = self.budgets.get(group)
        if budget is None:
            _refuse(
                "the run spends privacy, and the policy sets no budget for its data. "
                "Add one under [budgets] in policy.toml"
            )
        if privacy.unit == "user" and privacy.user_key != budget.user_key:
            _refuse(
                # Which field names the users here is not told either.
                f"privacy.user_key is {privacy.user_key!r}, which is not what names the users of this node's data: "
                "single records, or nobody, would be protected. Change the run, or set user_key under [budgets] in "
                "policy.toml"
            )
        if (privacy.epsilon or 0) > budget.epsilon or (privacy.delta or 0) > budget.delta:
            _refuse(
                # The budget is not told: a refusal goes to the coordinator.
                f"the run may spend epsilon {privacy.epsilon} and delta {privacy.delta} on its data, more than the "
                "policy allows over all runs. Lower the run's epsilon, or raise [budgets] in policy.toml"
            )

    def check_hours(self, now: datetime) -> None:
        """Raise NotNow when the local time `now` is outside the training hours."""
        if not any(_within(window, now) for window in self.training_hours):
            raise NotNow(
                f"it is {now:%a %H:%M} at the node; the policy trains {_listed(self.training_hours)}. "
                "Try again then, or widen training_hours in policy.toml.",
                seconds=self._rests_s(now),
            )

    def _rests_s(self, now: datetime) -> int:
        """Seconds until the training hours begin; a week where they never do."""
        minute = now.replace(second=0, microsecond=0)
        ahead = (minute + timedelta(minutes=n) for n in range(1, _WEEK_MINUTES))
        windows = [_parse_window(window) for window in self.training_hours]
        begins = next((when for when in ahead if any(_inside(*window, when) for window in windows)), None)
        return _WEEK_MINUTES * 60 if begins is None else int((begins - now).total_seconds()) + 1


def _refuse(what: str) -> NoReturn:
    raise PolicyRefusal(f"{what}.")


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(values) or "none"


def _member(what: str, value: str, allowed: tuple[str, ...], field: str) -> None:
    # The allowed names are not listed: a refusal goes to the coordinator, and names of data sets are the node's own.
    if value not in allowed:
        _refuse(
            f"{what} {value!r} is not allowed by this node's policy ({len(allowed)} are); "
            f"add it to {field} in policy.toml"
        )


def _at_least(what: str, value: int, bound: int, field: str) -> None:
    if value < bound:
        _refuse(f"{what} is {value}; the policy allows {bound} or more. Raise it, or lower {field} in policy.toml")


def _at_most(what: str, value: int, bound: int, field: str) -> None:
    if value > bound:
        _refuse(f"{what} is {value}; the policy allows at most {bound}. Lower it, or raise {field} in policy.toml")


def _minutes(clock: str) -> int:
    hours, minutes = (int(part) for part in clock.split(":"))
    if hours * 60 + minutes > 24 * 60 or minutes > 59:
        raise ValueError(f"{clock} is not a time of day between 00:00 and 24:00")
    return hours * 60 + minutes


def _days(text: str | None) -> set[int]:
    if text is None:
        return set(range(7))
    chosen: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first not in _DAYS or (last or first) not in _DAYS:
            raise ValueError(f"{part!r} names no days; write for example mon-fri or sat,sun")
        start, stop = _DAYS.index(first), _DAYS.index(last or first)
        chosen |= {(start + i) % 7 for i in range((stop - start) % 7 + 1)}
    return chosen


def _parse_window(window: str) -> tuple[set[int], int, int]:
    match = _HOURS.fullmatch(window)
    if match is None:
        raise ValueError(f'{window!r} is not a window such as "00:00-24:00" or "mon-fri 20:00-06:00"')
    return _days(match["days"]), _minutes(match["from"]), _minutes(match["to"])


def _within(window: str, now: datetime) -> bool:
    return _inside(*_parse_window(window), now)


def _inside(days: set[int], start: int, stop: int, now: datetime) -> bool:
    minute, day = now.hour * 60 + now.minute, now.weekday()
    if start < stop:
        return day in days and start <= minute < stop
    # The window runs over midnight: its second half belongs to the day on which it began.
    return (day in days and minute >= start) or ((day - 1) % 7 in days and minute < stop)


def parse_policy(text: str, source: str = "policy.toml") -> Policy:
    """Parse what an operator wrote. Raises PolicyRefusal naming each field: an unclear policy allows nothing."""
    try:
        policy = Policy.model_validate_json(canonical.encode(tomllib.loads(text)))
        for window in policy.training_hours:
            _parse_window(window)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:6])
        raise PolicyRefusal(f"{source} is not valid, so nothing is allowed: {faults}") from error
    except (tomllib.TOMLDecodeError, ValueError, TypeError, RecursionError) as error:
        raise PolicyRefusal(f"{source} is not valid, so nothing is allowed: {error}") from error
    return policy


def load_policy(path: Path) -> Policy:
    """The policy as it stands now. Raises NotNow when it is missing or unclear: somebody may be editing it."""
    cause: Exception
    try:
        return parse_policy(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        said, cause = "this node has no policy.toml, so nothing is allowed; write one", error
    except (OSError, UnicodeDecodeError) as error:
        said, cause = "policy.toml of this node cannot be read, so nothing is allowed; correct it", error
    except PolicyRefusal as error:
        said, cause = str(error), error
    raise NotNow(said, seconds=_CORRECTED_S) from cause


TEMPLATE = """\
# What this node allows. What is not written here is denied; changes take effect at once.
version = 1

# The consortium's root key. Compare it with your consortium over another channel before you write it here.
consortium_root = "{root}"

methods = []                        # e.g. ["sft"]
models = []                         # hashes that `confide model add` printed
data_sets = []                      # names that `confide data add` registered

min_cohort = 3                      # fewest organizations in any sum that holds this node's update
max_rounds = 0
max_local_steps = 0                 # optimizer steps a round
max_attempts = 2                    # times that one model may be trained on
training_hours = []                 # local time, e.g. ["mon-fri 20:00-06:00", "sat,sun 00:00-24:00"]

differences = "refused"             # "accepted": two sums of which one lacks this node may show its update
sealing = "required"                # "optional" lets a run show this node's update to the coordinator: research only
privacy_units = ["record", "user", "organization"]   # add "none" to allow runs without differential privacy
shared_noise = false                # true: all nodes add the noise together; the sum is noised, no update by itself
approval = "ask"                    # "auto": what passes the rules above needs no person
unfit_records = "skip"              # "ask": a run that some records do not fit waits for a person also under "auto"
hardware = []                       # shown to the consortium: "cores", "memory", "vector_units", "accelerator"

# Opinions on public answers, as sealed sums only; methods has to name "feedback" too.
# [feedback]
# purposes = ["scores", "gate"]     # "pairs": a candidate model, held against your comparisons
# answers_a_day = 200
# judge = ""                        # folder of your own reward model; empty: fitted to the data set's comparisons

# What may be spent in all, per group of data sets.
# [budgets.faq]
# epsilon = 8.0
# delta = 1e-6
# user_key = "author"               # the field that names a record's user, for runs that protect users

# Questions that this node's own index may answer (docs/federated-retrieval.md); without this section, none.
# [retrieval]
# collections = ["leaflets"]        # of `confide node rag add`
# askers = []                       # members whose signed questions are answered
# purposes = []                     # e.g. ["care"]
# answers = "count"                 # "quotes" lets their words out
"""
