"""Any members, bits, updates and drop-outs: what opens is exactly the sum of the integers that were masked."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from confide.codec.seal_vector import UploadSum, encode_upload
from confide.proto import fleet_pb2
from confide.runs.contribution import Contribution
from confide.runs.metrics import Metric
from confide.sealing.member import upload
from confide.sealing.primitives import scalars
from confide.sealing.roles import Abandoned, Opened
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sealing_harness import Federation, names, specify

# Thousands of fsyncs: in memory where the system offers it.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
LATER = (fleet_pb2.TRAIN, fleet_pb2.CONFIRM, fleet_pb2.REVEAL)


class Random(Federation):
    """Random weights, metrics and updates, some longer than the clipping norm."""

    seed = 0

    def contribution(self, name: str, plan: fleet_pb2.SlotOpen) -> Contribution:
        generator = np.random.default_rng([self.seed, int(name[-2:]), plan.slot])
        update = generator.normal(size=self.size, scale=generator.choice([1e-6, 1e-2, 1.0])).astype(np.float32)
        metrics = {metric: float(generator.uniform(-1, 1.2) * metric.ceiling) for metric in Metric}
        kept = {metric: value for metric, value in metrics.items() if generator.random() < 0.7}
        return Contribution(update, weight=float(generator.uniform(0.01, 1)), metrics=kept)


@given(
    count=st.integers(2, 7),
    colluding=st.integers(0, 3),
    bits=st.sampled_from([4, 8, 12, 16]),
    feedback=st.booleans(),
    size=st.integers(1, 60),
    gone=st.lists(st.tuples(st.integers(0, 6), st.sampled_from(LATER)), max_size=4),
    slots=st.integers(1, 2),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=30)
def test_the_opened_sum_is_exact(count, colluding, bits, feedback, size, gone, slots, seed) -> None:  # type: ignore[no-untyped-def]
    colluding = min(colluding, count - 2)
    settings_ = f"colluding = {colluding}\nbits = {bits}\nerror_feedback = {str(feedback).lower()}"
    plain: dict[Path, tuple[Path, list[int]]] = {}

    def beside(update, integers, layout, *, rounding_key, masks, out, feedback, to_integers):  # type: ignore[no-untyped-def]
        """The same integers without masks, into another file."""
        bare = out.with_name("bare-" + out.name)
        again = None if feedback is None else feedback.copy()
        digest = encode_upload(update, integers, layout, rounding_key=rounding_key, masks=[], out=bare, feedback=again)
        plain[out] = bare, list(integers)
        digests[bare] = digest
        return encode_upload(
            update, integers, layout, rounding_key=rounding_key, masks=masks, out=out, feedback=feedback
        )  # fmt: skip

    digests: dict[Path, bytes] = {}
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(upload, "encode_upload", beside)
        federation = Random(Path(folder), count, specify(settings_, 'min_cohort = 2\nweights = "examples"'), size=size)
        federation.seed = seed
        for slot in range(1, slots + 1):
            silent = {step: [names(7)[member] for member, at in gone if at == step] for step in LATER}
            federation.epoch()
            federation.collector.open_slot(federation.plan())
            outcome = federation.drive(silent)
            book, epoch = federation.collector._state.slot, federation.collector._state.epoch
            assert book is not None and book.layout is not None and epoch is not None
            missing = {federation_name for step in LATER for federation_name in silent[step]} & set(names(count))
            assert epoch.parameters is not None
            if len(missing) > epoch.parameters.missing:
                assert isinstance(outcome, Opened | Abandoned)
            else:
                assert isinstance(outcome, Opened)
            if isinstance(outcome, Opened):
                assert len(outcome.contributors) >= epoch.parameters.smallest_list
                total, integers = UploadSum(book.layout), []
                for name in outcome.contributors:
                    bare, own = plain[federation.folder / name / f"upload-{slot}"]
                    total.add(bare, digests[bare])
                    integers.append(own)
                expected, sums = total.open(len(outcome.contributors))
                assert outcome.update_sum.tobytes() == expected.tobytes()
                assert sums == [sum(values) for values in zip(*integers, strict=True)]
                assert (outcome.weight_sum, dict(outcome.metrics)) == scalars.decode(sums, len(integers))
            for path in plain.values():
                path[0].unlink(missing_ok=True)
            plain.clear()
            assert outcome is not None
            before = federation.model
            federation.end(outcome)
            federation.model = before if isinstance(outcome, Abandoned) else federation.model


@given(
    weight=st.floats(1e-6, 1.0),
    values=st.dictionaries(st.sampled_from(list(Metric)), st.floats(-1e9, 1e9), max_size=len(Metric)),
)
def test_scalars_survive_the_round_trip(weight: float, values: dict[Metric, float]) -> None:
    integers = scalars.encode(Contribution(np.zeros(0, np.float32), weight=weight, metrics=values))
    assert len(integers) == scalars.COUNT and all(0 <= value < 2**32 for value in integers)
    back, metrics = scalars.decode(integers, 1)
    assert back == pytest.approx(weight, abs=1e-9)
    assert set(metrics) == set(values)
    for name, (value, count) in metrics.items():
        assert count == 1
        assert value == pytest.approx(min(max(values[name], 0.0), name.ceiling), abs=name.ceiling * 1e-9)
