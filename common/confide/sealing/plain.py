"""`sealing = "none"`: updates travel readable. For research and comparison; the same two roles as sealed transport.

What is sent of the update (confide.models.sent_coordinates) goes as raw little-endian float32 (payload "upload"),
weight and metrics in a PlainUpload. The coordinator keeps each upload on disk and adds them in order of the nodes'
names, so that a run is reproducible bit by bit whatever the order in which answers come, and its memory does not grow
with the number of nodes.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.codec.digest import DigestedFile, upload_digest
from confide.codec.norms import l2_norm
from confide.codec.tensors import TensorSchema
from confide.errors import FailureName, ProtocolFailure, UpdateError
from confide.files import private_folder, write_atomic
from confide.identity.roster import Roster
from confide.journal import Journal
from confide.models.sent_coordinates import SentCoordinates
from confide.privacy.metrics import check_unaccounted
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.metrics import Metric
from confide.runs.schedule import clip_norm
from confide.runs.specification import Specification
from confide.sealing.collector.uploads import UploadStore
from confide.sealing.crash_points import reached
from confide.sealing.primitives import scalars, wire
from confide.sealing.roles import WORK, Abandoned, Answer, Exchange, Opened, SlotPlan, Train, check_work, work_step

CHUNK = 1 << 18


class PlainMember:
    """Node half. Keeps its last answer so that the same instruction gets the same bytes again."""

    def __init__(self, *, specification: Specification, folder: Path, schema: TensorSchema) -> None:
        """schema: of the flat update."""
        self._specification = specification
        self._folder = private_folder(folder)
        self._coordinates = SentCoordinates(specification, schema)
        self._last: tuple[bytes, Answer] | None = None
        self._slot = 0

    def handle(self, step: fleet_pb2.Step, body: bytes, train: Train, model: bytes | memoryview = b"") -> Answer:
        """Answer TRAIN or SCORE; raises ProtocolFailure for any other step and for a slot that is over."""
        if step not in WORK:
            raise wire.malformed(f"step {step} came; without sealing a slot has one step, TRAIN or SCORE")
        check_work(step, self._specification)
        if self._last is not None and self._last[0] == body:
            return self._last[1]
        open_ = wire.decode(fleet_pb2.SlotOpen, body)
        if open_.slot <= self._slot:
            raise ProtocolFailure(FailureName.SLOT_REUSED, f"slot {open_.slot} came again; slots only go up")
        self._slot = open_.slot
        contribution = train(open_)
        check_unaccounted(self._specification, contribution)
        metrics = scalars.checked_metrics(contribution.metrics)
        scalars.check_weight(contribution.weight)
        update = sent_part(contribution.update, self._coordinates, open_.round, open_.evaluate_only)
        limited = self._specification.federation.clip_norm is not None
        clip = clip_norm(self._specification, open_.round) if limited else None
        data = clipped(update, clip).tobytes()
        path = self._folder / "upload"
        write_atomic(path, data)
        reply = sealing_pb2.PlainUpload(
            version=wire.VERSION,
            slot=open_.slot,
            upload_digest=upload_digest(data),
            weight=contribution.weight,
            metrics=[sealing_pb2.MetricValue(name=name.value, value=value) for name, value in metrics.items()],
        )
        answer = Answer(wire.encode(reply), path)
        self._last = (bytes(body), answer)
        return answer

    def slot_ended(self, end: fleet_pb2.End) -> None:
        """Forget the upload."""
        if end.slot in (0, self._slot):
            self._last = None
            (self._folder / "upload").unlink(missing_ok=True)

    def update_roster(self, roster: Roster) -> None:
        """Membership does not matter here: nothing is encrypted to anybody."""

    def close(self) -> None:
        """Nothing is held open."""


class PlainCollector:
    """Coordinator half."""

    def __init__(self, *, specification: Specification, roster: Roster, folder: Path, schema: TensorSchema) -> None:
        """Opens what an earlier process left in `folder`, if anything."""
        self.outcome: Opened | Abandoned | None = None
        self._specification, self._federation = specification, specification.federation
        self._roster = roster
        self._coordinates = SentCoordinates(specification, schema)
        self._uploads = UploadStore(private_folder(folder) / "uploads")
        self._journal = Journal(folder / "collector.jsonl")
        self._cohort: tuple[str, ...] = ()
        self._plan: SlotPlan | None = None
        self._kept: dict[str, sealing_pb2.PlainUpload] = {}
        self._dropped: dict[str, str] = {}
        self._ended: tuple[int, bool, str, list[str]] | None = None
        for entry in self._journal:
            self._replay(entry)

    def _replay(self, entry: dict[str, Any]) -> None:
        match entry["event"]:
            case "slot":
                self._plan = SlotPlan.of(wire.decode(fleet_pb2.SlotOpen, bytes.fromhex(entry["plan"])))
                self._cohort = tuple(entry["cohort"])
                self._kept, self._dropped, self.outcome, self._ended = {}, {}, None, None
            case "upload":
                self._kept[entry["node"]] = wire.decode(sealing_pb2.PlainUpload, bytes.fromhex(entry["body"]))
            case "decided":
                self._ended = (entry["slot"], entry["committed"], entry["failure"], entry["contributors"])
            case "ended":
                self._plan = None

    @property
    def resumable(self) -> SlotPlan | None:
        """The slot that was open when the last process ended."""
        return self._plan

    def update_roster(self, roster: Roster) -> None:
        """Use a newer roster from the next slot on."""
        self._roster = roster

    def waits_for(self, present: tuple[str, ...], gone: Mapping[str, str]) -> tuple[str, ...]:
        """Nobody: each update is seen by itself anyway."""
        return ()

    def returned(self, names: Collection[str]) -> None:
        """There are no secrets to lose."""

    def begin_epoch(self, present: tuple[str, ...]) -> None:
        """Only names the cohort: there is no key material without sealing."""
        for name in present:
            self._roster.member(name)
        self._cohort = tuple(sorted(present))

    def epoch_needed(self, present: tuple[str, ...]) -> bool:
        """Whether the cohort changed."""
        return self._cohort != tuple(sorted(present)) and self._plan is None

    def open_slot(self, plan: SlotPlan) -> None:
        """Begin a slot, or go on with the one that a crash left open."""
        if plan == self._plan:
            return
        self._plan, self.outcome = plan, None
        self._kept, self._dropped, self._ended = {}, {}, None
        self._journal.append(
            {"event": "slot", "plan": wire.encode(plan.to_message()).hex(), "cohort": list(self._cohort)}
        )
        reached("collector.slot_written")

    def exchange(self) -> Exchange | None:
        """TRAIN or SCORE for everyone who has not answered yet."""
        if self._plan is None or self.outcome is not None:
            return None
        waiting = [name for name in self._cohort if name not in self._kept and name not in self._dropped]
        if not waiting:
            self.close_exchange()
            return None
        body = wire.encode(self._plan.to_message())
        return Exchange(
            step=work_step(self._specification),
            bodies=dict.fromkeys(waiting, body),
            deadline_s=self._federation.deadline_limit_s,
            with_model=True,
        )

    def receive(self, node: str, body: bytes, payload: DigestedFile | None) -> None:
        """Keep one upload durably. Raises ConfideError when it is not acceptable."""
        if self._plan is None or self.outcome is not None or node not in self._cohort:
            raise ProtocolFailure(FailureName.LATE_UPLOAD, f"no upload of {node} is awaited; the slot has ended")
        if node in self._kept:
            return
        try:
            upload = wire.decode(sealing_pb2.PlainUpload, body)
            _check_upload(node, upload, self._plan.slot, uniform=self._federation.weights == "uniform")
            if payload is None:
                raise UpdateError(f"the reply of {node} has no payload 'upload'")
            path = self._uploads.keep(self._plan.slot, node, payload, upload.upload_digest, 4 * self._parameters)
            _check_finite(node, path)
            self._uploads.settle(self._plan.slot)
        except (ProtocolFailure, UpdateError) as error:
            self._dropped[node] = str(error)
            raise
        self._journal.append({"event": "upload", "node": node, "body": body.hex()})
        self._kept[node] = upload
        reached("collector.upload_kept")

    @property
    def _parameters(self) -> int:
        return 0 if self._plan is None or self._plan.evaluate_only else self._coordinates.count(self._plan.round)

    def lost(self, node: str, code: str, message: str) -> None:
        """The node does not contribute to this slot."""
        if node not in self._kept:
            self._dropped[node] = f"{code}: {message}"

    def close_exchange(self) -> None:
        """Add what came, if enough came."""
        if self._plan is None or self.outcome is not None:
            return
        for name in self._cohort:
            if name not in self._kept:
                self._dropped.setdefault(name, "TransportError: no answer before the deadline")
        names = sorted(self._kept)
        if len(names) < self._federation.min_cohort:
            code = FailureName.LIST_TOO_SMALL
            reason = (
                f"{len(names)} of {len(self._cohort)} contributed; at least {self._federation.min_cohort} are needed"
            )
            self.outcome = Abandoned(code=code.value, reason=reason, dropped=dict(self._dropped))
        else:
            self.outcome = self._opened(self._plan.slot, names)
        failure = self.outcome.code if isinstance(self.outcome, Abandoned) else ""
        self._ended = (self._plan.slot, not failure, failure, [] if failure else names)
        slot, committed, failure, contributors = self._ended
        self._journal.append(
            {"event": "decided", "slot": slot, "committed": committed, "failure": failure, "contributors": contributors}
        )
        reached("collector.decided")

    def _opened(self, slot: int, names: list[str]) -> Opened:
        weights = {name: self._kept[name].weight for name in names}
        paths = {name: self._uploads.path(slot, name) for name in names}
        metrics: dict[Metric, tuple[float, int]] = {}
        for name in names:
            for item in self._kept[name].metrics:
                total, count = metrics.get(Metric(item.name), (0.0, 0))
                metrics[Metric(item.name)] = (total + item.value, count + 1)
        return Opened(
            update_sum=weighted_sum(paths, weights, self._parameters),
            weight_sum=math.fsum(weights.values()),
            metrics=metrics,
            contributors=tuple(names),
            dropped=dict(self._dropped),
            promise={
                "kind": "none",
                "n": len(self._cohort),
                "list_size": len(names),
                "words": "nothing is hidden: the coordinator sees every organization's update",
            },
        )

    def end_message(self, next_model_sha256: bytes) -> fleet_pb2.End:
        """The slot's end; erases its uploads."""
        if self._ended is None:
            raise UpdateError("no slot has been decided; end_message comes after an outcome")
        slot, committed, failure, contributors = self._ended
        if self._plan is not None:
            self._journal.append({"event": "ended", "slot": slot})
            self._plan = None
        self._uploads.erase(slot)
        reached("collector.ended")
        return fleet_pb2.End(
            slot=slot,
            committed=committed,
            failure=failure,
            next_model_sha256=next_model_sha256,
            contributors=contributors,
        )

    def close(self) -> None:
        """Release the journal."""
        self._journal.close()


def checked_update(update: NDArray[np.float32], size: int, evaluate_only: bool) -> NDArray[np.float32]:
    """The update as a little-endian float32 vector. Raises UpdateError for a wrong shape or NaN."""
    wanted = 0 if evaluate_only else size
    if update.shape != (wanted,):
        raise UpdateError(f"the update has shape {update.shape}; this slot needs ({wanted},)")
    flat = np.ascontiguousarray(update, dtype="<f4")
    for start in range(0, wanted, CHUNK):
        if not np.isfinite(flat[start : start + CHUNK]).all():
            raise UpdateError("the update holds NaN or infinity; nothing of it is sent")
    return flat


def sent_part(
    update: NDArray[np.float32], coordinates: SentCoordinates, round: int, evaluate_only: bool
) -> NDArray[np.float32]:
    """What is sent of a checked update in this round. Raises UpdateError for a change where nothing is sent."""
    flat = checked_update(update, coordinates.size, evaluate_only)
    if evaluate_only or coordinates.count(round) == coordinates.size:
        return flat
    for start, stop in coordinates.rest(round, 1):
        if flat[start:stop].any():
            raise UpdateError(f"the update changes parameters that do not travel in round {round}; nothing is sent")
    return coordinates.gather(flat, round)


def clipped(update: NDArray[np.float32], clip: float | None) -> NDArray[np.float32]:
    """The update scaled down to L2 norm `clip`, or itself where it is no longer than that."""
    if clip is None:
        return update
    norm = l2_norm(update)
    return update if norm <= clip else (update * np.float32(clip / norm)).astype("<f4")


def weighted_sum(paths: Mapping[str, Path], weights: Mapping[str, float], parameters: int) -> NDArray[np.float64]:
    """Sum of weight * update in float64, nodes in order of their names, by chunk. Shape (parameters,)."""
    total = np.zeros(parameters, dtype=np.float64)
    for name in sorted(paths):
        with paths[name].open("rb") as file:
            for start in range(0, parameters, CHUNK):
                stop = min(start + CHUNK, parameters)
                chunk = np.frombuffer(file.read(4 * (stop - start)), dtype="<f4")
                total[start:stop] += weights[name] * chunk.astype(np.float64)
    return total


def _check_upload(node: str, upload: sealing_pb2.PlainUpload, slot: int, *, uniform: bool) -> None:
    if upload.slot != slot:
        raise ProtocolFailure(FailureName.LATE_UPLOAD, f"{node} answered slot {upload.slot}; slot {slot} is open")
    wire.require_length("upload_digest", upload.upload_digest, wire.DIGEST_BYTES)
    scalars.check_weight(upload.weight)
    if uniform and upload.weight != 1.0:
        raise ProtocolFailure(
            FailureName.SUM_OUT_OF_RANGE, f"{node} weighs its update {upload.weight}; in this run every weight is 1"
        )
    names = [item.name for item in upload.metrics]
    unknown = [name for name in names if name not in set(Metric)]
    if unknown:
        raise ProtocolFailure(FailureName.METRIC_NOT_ALLOWED, f"{node} sent the metric {unknown[0]!r}")
    if names != [metric.value for metric in Metric if metric.value in names]:
        raise wire.malformed(f"the metrics of {node} are not distinct and in order")
    for item in upload.metrics:
        if not 0.0 <= item.value <= Metric(item.name).ceiling:
            raise ProtocolFailure(
                FailureName.METRIC_NOT_ALLOWED,
                f"{node} sent {item.name} = {item.value}; it lies in [0, {Metric(item.name).ceiling}]",
            )


def _check_finite(node: str, path: Path) -> None:
    with path.open("rb") as file:
        while data := file.read(4 * CHUNK):
            if not np.isfinite(np.frombuffer(data, dtype="<f4")).all():
                raise UpdateError(f"the update of {node} holds NaN or infinity; it is not used")
