from confide.proto import fleet_pb2 as _fleet_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ("nonce", "roster_version")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    roster_version: int
    def __init__(self, nonce: _Optional[bytes] = ..., roster_version: _Optional[int] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("coordinator", "signature", "roster_version", "roster")
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    coordinator: str
    signature: bytes
    roster_version: int
    roster: bytes
    def __init__(self, coordinator: _Optional[str] = ..., signature: _Optional[bytes] = ..., roster_version: _Optional[int] = ..., roster: _Optional[bytes] = ...) -> None: ...

class PublishRosterRequest(_message.Message):
    __slots__ = ("roster",)
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    roster: bytes
    def __init__(self, roster: _Optional[bytes] = ...) -> None: ...

class PublishRosterReply(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    def __init__(self, request: _Optional[bytes] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FetchAdmissionRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FetchAdmissionReply(_message.Message):
    __slots__ = ("admission",)
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    admission: bytes
    def __init__(self, admission: _Optional[bytes] = ...) -> None: ...

class GetRosterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetRosterReply(_message.Message):
    __slots__ = ("roster",)
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    roster: bytes
    def __init__(self, roster: _Optional[bytes] = ...) -> None: ...

class PutReceiptRequest(_message.Message):
    __slots__ = ("run_id", "receipt", "signature")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    receipt: bytes
    signature: bytes
    def __init__(self, run_id: _Optional[str] = ..., receipt: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class PutReceiptReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ProveRunRequest(_message.Message):
    __slots__ = ("run_id", "round")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class RunProofPart(_message.Message):
    __slots__ = ("head", "entry", "file", "chunk")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    head: _fleet_pb2.RunHead
    entry: RoundEntry
    file: ProofFile
    chunk: bytes
    def __init__(self, head: _Optional[_Union[_fleet_pb2.RunHead, _Mapping]] = ..., entry: _Optional[_Union[RoundEntry, _Mapping]] = ..., file: _Optional[_Union[ProofFile, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class RoundEntry(_message.Message):
    __slots__ = ("record", "included", "index", "path")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    INCLUDED_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    included: bool
    index: int
    path: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, record: _Optional[bytes] = ..., included: _Optional[bool] = ..., index: _Optional[int] = ..., path: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ProofFile(_message.Message):
    __slots__ = ("name", "bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    bytes: int
    def __init__(self, name: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class ListRequestsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRequestsReply(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, requests: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PublishAdmissionRequest(_message.Message):
    __slots__ = ("admission",)
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    admission: bytes
    def __init__(self, admission: _Optional[bytes] = ...) -> None: ...

class PublishAdmissionReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SubmitRunRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: SubmitRunHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[SubmitRunHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class SubmitRunHeader(_message.Message):
    __slots__ = ("specification", "initial_model_sha256", "signature", "initial_model_bytes", "schema", "run_id", "nonce", "expires_at", "parent_run_id", "parent_round")
    SPECIFICATION_FIELD_NUMBER: _ClassVar[int]
    INITIAL_MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    INITIAL_MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    PARENT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_ROUND_FIELD_NUMBER: _ClassVar[int]
    specification: bytes
    initial_model_sha256: bytes
    signature: bytes
    initial_model_bytes: int
    schema: bytes
    run_id: str
    nonce: bytes
    expires_at: int
    parent_run_id: str
    parent_round: int
    def __init__(self, specification: _Optional[bytes] = ..., initial_model_sha256: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., initial_model_bytes: _Optional[int] = ..., schema: _Optional[bytes] = ..., run_id: _Optional[str] = ..., nonce: _Optional[bytes] = ..., expires_at: _Optional[int] = ..., parent_run_id: _Optional[str] = ..., parent_round: _Optional[int] = ...) -> None: ...

class SubmitRunReply(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunSummary(_message.Message):
    __slots__ = ("run_id", "name", "status", "round", "rounds", "sealing", "detail", "submitted_at")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    SEALING_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    name: str
    status: str
    round: int
    rounds: int
    sealing: str
    detail: str
    submitted_at: float
    def __init__(self, run_id: _Optional[str] = ..., name: _Optional[str] = ..., status: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., sealing: _Optional[str] = ..., detail: _Optional[str] = ..., submitted_at: _Optional[float] = ...) -> None: ...

class ListRunsReply(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunSummary]
    def __init__(self, runs: _Optional[_Iterable[_Union[RunSummary, _Mapping]]] = ...) -> None: ...

class WatchRunRequest(_message.Message):
    __slots__ = ("run_id", "after")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    after: int
    def __init__(self, run_id: _Optional[str] = ..., after: _Optional[int] = ...) -> None: ...

class RunEvent(_message.Message):
    __slots__ = ("sequence", "time", "kind", "data")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    time: float
    kind: str
    data: bytes
    def __init__(self, sequence: _Optional[int] = ..., time: _Optional[float] = ..., kind: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class StopRunRequest(_message.Message):
    __slots__ = ("run_id", "signature")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    signature: bytes
    def __init__(self, run_id: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class StopRunReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExportRunRequest(_message.Message):
    __slots__ = ("run_id", "round")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class ExportRunReply(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: ExportRunHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[ExportRunHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class ExportRunHeader(_message.Message):
    __slots__ = ("manifest_bytes", "model_bytes")
    MANIFEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    manifest_bytes: int
    model_bytes: int
    def __init__(self, manifest_bytes: _Optional[int] = ..., model_bytes: _Optional[int] = ...) -> None: ...
