"""Updates as raw bytes: checked by name, shape, length and value."""

from pathlib import Path

import numpy as np
import pytest
import torch
from confide.codec.digest import DigestedFile, upload_digest
from confide.codec.tensors import TensorSchema
from confide.errors import TransportError, UpdateError
from confide.transport import envelope
from confide_client.agent.envelope import pack, unpack
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

TENSORS = {"w": torch.arange(6.0).reshape(2, 3), "empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}
SCHEMA = TensorSchema.of(TENSORS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32])
def test_any_dtype_and_shape_goes_through(dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in TENSORS.items()}
    back = SCHEMA.unflatten(SCHEMA.decode(SCHEMA.encode(tensors)))
    for name, tensor in tensors.items():
        assert back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor.to(torch.float32))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({**TENSORS, "extra": torch.zeros(1)}, "extra"),
        ({"w": TENSORS["w"], "empty": TENSORS["empty"]}, "scalar"),
        ({**TENSORS, "w": torch.zeros(3, 2)}, r"\(3, 2\)"),
        ({**TENSORS, "w": torch.full((2, 3), float("nan"))}, "'w' holds NaN"),
        ({**TENSORS, "scalar": torch.tensor(float("inf"))}, "'scalar' holds NaN"),
    ],
)
def test_wrong_tensors_are_named(tensors: dict[str, torch.Tensor], says: str) -> None:
    with pytest.raises(UpdateError, match=says):
        SCHEMA.flatten(tensors)


@given(st.binary(max_size=64))
def test_arbitrary_bytes_decode_or_raise_the_named_error(data: bytes) -> None:
    try:
        flat = SCHEMA.decode(data)
    except UpdateError:
        return
    assert flat.shape == (SCHEMA.size,) and np.isfinite(flat).all()


def test_truncated_and_long_updates_are_refused() -> None:
    data = SCHEMA.encode(TENSORS)
    for wrong in (data[:-1], data[:-4], data + b"\0\0\0\0", b""):
        with pytest.raises(UpdateError, match="bytes came"):
            SCHEMA.decode(wrong)


@given(st.binary(max_size=50), st.dictionaries(st.text(min_size=1, max_size=8), st.binary(max_size=50), max_size=3))
def test_envelopes_round_trip(body: bytes, payload: dict[str, bytes]) -> None:
    assert unpack(pack(body, payload)) == (body, payload)


@pytest.mark.parametrize(
    "record",
    [
        RecordDict({}),
        RecordDict({"confide": ConfigRecord({"body": "text"})}),
        RecordDict({"confide": ConfigRecord({"body": b""}), "other": ConfigRecord({})}),
        RecordDict({"confide": ConfigRecord({"body": b""}), "payload": ConfigRecord({})}),
        RecordDict({"confide": ConfigRecord({"body": b""}), "payload": ArrayRecord([np.zeros(3)])}),
    ],
)
def test_other_records_are_refused(record: RecordDict) -> None:
    with pytest.raises(TransportError):
        unpack(record)


def test_payload_digest_depends_on_names_and_bytes() -> None:
    digests = {envelope.payload_digest(p) for p in ({}, {"a": b"1"}, {"b": b"1"}, {"a": b"2"}, {"a": b"", "1": b""})}
    assert len(digests) == 5


def test_a_file_that_is_written_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    written = DigestedFile.write(tmp_path / "came", iter([b"12", b"", b"3"]))
    assert written == DigestedFile.read(tmp_path / "came")
    assert written.digest == upload_digest(b"123")
    assert written.path.read_bytes() == b"123" and written.path.stat().st_mode & 0o777 == 0o600
    assert envelope.digest_of_entries({"a": written.digest}) == envelope.payload_digest({"a": b"123"})
    with pytest.raises(FileExistsError):
        DigestedFile.write(tmp_path / "came", [b"4"])
