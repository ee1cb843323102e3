from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Step(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEP_UNSPECIFIED: _ClassVar[Step]
    OFFER: _ClassVar[Step]
    ADVERTISE: _ClassVar[Step]
    SHARE: _ClassVar[Step]
    TRAIN: _ClassVar[Step]
    CONFIRM: _ClassVar[Step]
    REVEAL: _ClassVar[Step]
    END: _ClassVar[Step]
    ANCHOR: _ClassVar[Step]
    SCORE: _ClassVar[Step]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_LOADING: _ClassVar[Phase]
    PHASE_MEASURING: _ClassVar[Phase]
    PHASE_ENCODING: _ClassVar[Phase]
    PHASE_EVALUATING: _ClassVar[Phase]
    PHASE_TRAINING: _ClassVar[Phase]
    PHASE_SEALING: _ClassVar[Phase]
    PHASE_WORKING: _ClassVar[Phase]
STEP_UNSPECIFIED: Step
OFFER: Step
ADVERTISE: Step
SHARE: Step
TRAIN: Step
CONFIRM: Step
REVEAL: Step
END: Step
ANCHOR: Step
SCORE: Step
PHASE_UNSPECIFIED: Phase
PHASE_LOADING: Phase
PHASE_MEASURING: Phase
PHASE_ENCODING: Phase
PHASE_EVALUATING: Phase
PHASE_TRAINING: Phase
PHASE_SEALING: Phase
PHASE_WORKING: Phase

class Instruction(_message.Message):
    __slots__ = ("version", "release", "run_id", "step", "sequence", "body", "payload_digest")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    version: int
    release: str
    run_id: str
    step: Step
    sequence: int
    body: bytes
    payload_digest: bytes
    def __init__(self, version: _Optional[int] = ..., release: _Optional[str] = ..., run_id: _Optional[str] = ..., step: _Optional[_Union[Step, str]] = ..., sequence: _Optional[int] = ..., body: _Optional[bytes] = ..., payload_digest: _Optional[bytes] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("version", "release", "run_id", "step", "sequence", "node", "payload_digest", "body", "failure")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    version: int
    release: str
    run_id: str
    step: Step
    sequence: int
    node: str
    payload_digest: bytes
    body: bytes
    failure: Failure
    def __init__(self, version: _Optional[int] = ..., release: _Optional[str] = ..., run_id: _Optional[str] = ..., step: _Optional[_Union[Step, str]] = ..., sequence: _Optional[int] = ..., node: _Optional[str] = ..., payload_digest: _Optional[bytes] = ..., body: _Optional[bytes] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "busy_s")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    busy_s: int
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., busy_s: _Optional[int] = ...) -> None: ...

class SignedReply(_message.Message):
    __slots__ = ("reply", "signature")
    REPLY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    reply: bytes
    signature: bytes
    def __init__(self, reply: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("specification", "initial_model_sha256", "signature", "administrator", "roster", "run_id", "nonce", "expires_at", "parent_run_id", "parent_round", "cosigned")
    SPECIFICATION_FIELD_NUMBER: _ClassVar[int]
    INITIAL_MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    ADMINISTRATOR_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    PARENT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_ROUND_FIELD_NUMBER: _ClassVar[int]
    COSIGNED_FIELD_NUMBER: _ClassVar[int]
    specification: bytes
    initial_model_sha256: bytes
    signature: bytes
    administrator: str
    roster: bytes
    run_id: str
    nonce: bytes
    expires_at: int
    parent_run_id: str
    parent_round: int
    cosigned: _containers.RepeatedCompositeFieldContainer[Cosignature]
    def __init__(self, specification: _Optional[bytes] = ..., initial_model_sha256: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., administrator: _Optional[str] = ..., roster: _Optional[bytes] = ..., run_id: _Optional[str] = ..., nonce: _Optional[bytes] = ..., expires_at: _Optional[int] = ..., parent_run_id: _Optional[str] = ..., parent_round: _Optional[int] = ..., cosigned: _Optional[_Iterable[_Union[Cosignature, _Mapping]]] = ...) -> None: ...

class Cosignature(_message.Message):
    __slots__ = ("administrator", "signature")
    ADMINISTRATOR_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    administrator: str
    signature: bytes
    def __init__(self, administrator: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class OfferAnswer(_message.Message):
    __slots__ = ("accepted", "waiting", "reason", "preparing", "round_s", "precision", "busy_s", "hardware")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PREPARING_FIELD_NUMBER: _ClassVar[int]
    ROUND_S_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    waiting: bool
    reason: str
    preparing: bool
    round_s: float
    precision: str
    busy_s: int
    hardware: Hardware
    def __init__(self, accepted: _Optional[bool] = ..., waiting: _Optional[bool] = ..., reason: _Optional[str] = ..., preparing: _Optional[bool] = ..., round_s: _Optional[float] = ..., precision: _Optional[str] = ..., busy_s: _Optional[int] = ..., hardware: _Optional[_Union[Hardware, _Mapping]] = ...) -> None: ...

class Hardware(_message.Message):
    __slots__ = ("cores", "memory_gib", "vector_units", "accelerator")
    CORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_GIB_FIELD_NUMBER: _ClassVar[int]
    VECTOR_UNITS_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    cores: int
    memory_gib: int
    vector_units: _containers.RepeatedScalarFieldContainer[str]
    accelerator: str
    def __init__(self, cores: _Optional[int] = ..., memory_gib: _Optional[int] = ..., vector_units: _Optional[_Iterable[str]] = ..., accelerator: _Optional[str] = ...) -> None: ...

class SlotOpen(_message.Message):
    __slots__ = ("slot", "round", "attempt", "model_sha256", "parent_model_sha256", "evaluate_only")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    PARENT_MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    slot: int
    round: int
    attempt: int
    model_sha256: bytes
    parent_model_sha256: bytes
    evaluate_only: bool
    def __init__(self, slot: _Optional[int] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., model_sha256: _Optional[bytes] = ..., parent_model_sha256: _Optional[bytes] = ..., evaluate_only: _Optional[bool] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ("slot", "committed", "failure", "next_model_sha256", "contributors", "run_ended", "coordinator", "signature", "stopped_by", "stop_signature", "head")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    NEXT_MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTORS_FIELD_NUMBER: _ClassVar[int]
    RUN_ENDED_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    STOPPED_BY_FIELD_NUMBER: _ClassVar[int]
    STOP_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    slot: int
    committed: bool
    failure: str
    next_model_sha256: bytes
    contributors: _containers.RepeatedScalarFieldContainer[str]
    run_ended: bool
    coordinator: str
    signature: bytes
    stopped_by: str
    stop_signature: bytes
    head: RunHead
    def __init__(self, slot: _Optional[int] = ..., committed: _Optional[bool] = ..., failure: _Optional[str] = ..., next_model_sha256: _Optional[bytes] = ..., contributors: _Optional[_Iterable[str]] = ..., run_ended: _Optional[bool] = ..., coordinator: _Optional[str] = ..., signature: _Optional[bytes] = ..., stopped_by: _Optional[str] = ..., stop_signature: _Optional[bytes] = ..., head: _Optional[_Union[RunHead, _Mapping]] = ...) -> None: ...

class RunHead(_message.Message):
    __slots__ = ("size", "root_sha256", "coordinator", "signature")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    ROOT_SHA256_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    size: int
    root_sha256: bytes
    coordinator: str
    signature: bytes
    def __init__(self, size: _Optional[int] = ..., root_sha256: _Optional[bytes] = ..., coordinator: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("version", "run_id", "node", "phase", "step", "steps", "seconds_left", "number")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    version: int
    run_id: str
    node: str
    phase: Phase
    step: int
    steps: int
    seconds_left: int
    number: int
    def __init__(self, version: _Optional[int] = ..., run_id: _Optional[str] = ..., node: _Optional[str] = ..., phase: _Optional[_Union[Phase, str]] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., seconds_left: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class ProgressReport(_message.Message):
    __slots__ = ("node_id", "progress", "signature")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    progress: bytes
    signature: bytes
    def __init__(self, node_id: _Optional[int] = ..., progress: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ProgressTaken(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunEndsQuery(_message.Message):
    __slots__ = ("node_id", "run_ids")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_IDS_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    run_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, node_id: _Optional[int] = ..., run_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class RunEnds(_message.Message):
    __slots__ = ("ends", "unknown")
    ENDS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    ends: _containers.RepeatedCompositeFieldContainer[RunEnd]
    unknown: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ends: _Optional[_Iterable[_Union[RunEnd, _Mapping]]] = ..., unknown: _Optional[_Iterable[str]] = ...) -> None: ...

class RunEnd(_message.Message):
    __slots__ = ("run_id", "end")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    end: End
    def __init__(self, run_id: _Optional[str] = ..., end: _Optional[_Union[End, _Mapping]] = ...) -> None: ...

class InstructionQuery(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    def __init__(self, node_id: _Optional[int] = ...) -> None: ...

class InstructionPulled(_message.Message):
    __slots__ = ("message", "tree", "objects", "complete")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TREE_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    message: bytes
    tree: bytes
    objects: _containers.RepeatedCompositeFieldContainer[SmallObject]
    complete: bool
    def __init__(self, message: _Optional[bytes] = ..., tree: _Optional[bytes] = ..., objects: _Optional[_Iterable[_Union[SmallObject, _Mapping]]] = ..., complete: _Optional[bool] = ...) -> None: ...

class SmallObject(_message.Message):
    __slots__ = ("object_id", "content")
    OBJECT_ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    object_id: str
    content: bytes
    def __init__(self, object_id: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class ReplyPush(_message.Message):
    __slots__ = ("node_id", "message", "tree", "objects")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TREE_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    message: bytes
    tree: bytes
    objects: _containers.RepeatedCompositeFieldContainer[SmallObject]
    def __init__(self, node_id: _Optional[int] = ..., message: _Optional[bytes] = ..., tree: _Optional[bytes] = ..., objects: _Optional[_Iterable[_Union[SmallObject, _Mapping]]] = ...) -> None: ...

class ReplyTaken(_message.Message):
    __slots__ = ("objects_to_push", "session_id")
    OBJECTS_TO_PUSH_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    objects_to_push: _containers.RepeatedScalarFieldContainer[str]
    session_id: str
    def __init__(self, objects_to_push: _Optional[_Iterable[str]] = ..., session_id: _Optional[str] = ...) -> None: ...
