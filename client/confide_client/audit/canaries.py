"""Canaries that this node plants into its part of one run, and the training data that then holds them.

They are planted before the run is approved here, because the number of records fixes its noise, and only where the
policy consents. The file with the coins lies in the run's folder, mode 0600, and is sent nowhere.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from confide.errors import PolicyRefusal, StateError
from confide.files import write_atomic
from confide.privacy.audit.canaries import CanarySet
from confide.runs.specification import Specification

from confide_client.data.datasets import LocalData
from confide_client.policy.policy import Policy

_FILE = "canaries.json"


def planted(folder: Path) -> CanarySet | None:
    """The canaries of the run whose folder this is, or None. Raises StateError when damaged."""
    path = folder / _FILE
    return CanarySet.from_bytes(path.read_bytes(), str(path)) if path.exists() else None


def plant(folder: Path, canaries: CanarySet, policy: Policy, *, begun: bool) -> None:
    """Keep `canaries` for the run. begun: whether the run was approved here already.

    Raises PolicyRefusal without consent, StateError when it is too late.
    """
    if not policy.canaries:
        raise PolicyRefusal(
            "this node's policy does not consent to made-up records in training; set canaries = true in policy.toml"
        )
    if begun:
        raise StateError(
            "this run was approved here already, with its noise for the records it had; plant canaries while a run "
            'waits for approval (approval = "ask"), or use `confide audit rehearse`'
        )
    if planted(folder) is not None:
        raise StateError("this run has canaries already; they cannot be planted twice")
    write_atomic(folder / _FILE, canaries.to_bytes())


def with_canaries(data: LocalData, canaries: CanarySet | None, specification: Specification) -> LocalData:
    """The shard that is trained on: the registered one, with the run's canaries, if any, behind its records.

    Under record- and user-level privacy a canary that was left out is there as None: it counts, and teaches nothing.
    """
    if canaries is None:
        return data
    if canaries.method != specification.method.name:
        raise StateError(f"the canaries were made for method {canaries.method!r}; this run's is another one")
    counted = specification.privacy.unit in {"record", "user"}
    return LocalData(train=_Behind(data.train, canaries.records(counted=counted)), evaluation=data.evaluation)


class _Behind(Sequence[Any]):
    """Records that are read from disk, and a few behind them; a list of both would hold all in memory."""

    def __init__(self, stored: Sequence[Any], few: Sequence[Any]) -> None:
        self._stored, self._few = stored, few

    def __len__(self) -> int:
        return len(self._stored) + len(self._few)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        behind = number - len(self._stored)
        return self._few[behind] if behind >= 0 else self._stored[number]
