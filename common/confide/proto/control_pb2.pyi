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
