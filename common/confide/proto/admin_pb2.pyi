from confide.proto import fleet_pb2 as _fleet_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServerStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerStatus(_message.Message):
    __slots__ = ("clock", "release", "started_at", "coordinator", "consortium", "demo", "roster_version", "roster_expires_at", "certificate_expires_at", "trouble", "trouble_since", "threads", "runs", "enrolments_waiting", "nodes_connected", "nodes_known", "disks", "watchers", "max_watchers", "max_concurrent_runs")
    class RunsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    CONSORTIUM_FIELD_NUMBER: _ClassVar[int]
    DEMO_FIELD_NUMBER: _ClassVar[int]
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROSTER_EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_SINCE_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    ENROLMENTS_WAITING_FIELD_NUMBER: _ClassVar[int]
    NODES_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    NODES_KNOWN_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    WATCHERS_FIELD_NUMBER: _ClassVar[int]
    MAX_WATCHERS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_RUNS_FIELD_NUMBER: _ClassVar[int]
    clock: float
    release: str
    started_at: float
    coordinator: str
    consortium: str
    demo: bool
    roster_version: int
    roster_expires_at: float
    certificate_expires_at: float
    trouble: str
    trouble_since: float
    threads: _containers.RepeatedCompositeFieldContainer[ThreadStatus]
    runs: _containers.ScalarMap[str, int]
    enrolments_waiting: int
    nodes_connected: int
    nodes_known: int
    disks: _containers.RepeatedCompositeFieldContainer[DiskStatus]
    watchers: int
    max_watchers: int
    max_concurrent_runs: int
    def __init__(self, clock: _Optional[float] = ..., release: _Optional[str] = ..., started_at: _Optional[float] = ..., coordinator: _Optional[str] = ..., consortium: _Optional[str] = ..., demo: _Optional[bool] = ..., roster_version: _Optional[int] = ..., roster_expires_at: _Optional[float] = ..., certificate_expires_at: _Optional[float] = ..., trouble: _Optional[str] = ..., trouble_since: _Optional[float] = ..., threads: _Optional[_Iterable[_Union[ThreadStatus, _Mapping]]] = ..., runs: _Optional[_Mapping[str, int]] = ..., enrolments_waiting: _Optional[int] = ..., nodes_connected: _Optional[int] = ..., nodes_known: _Optional[int] = ..., disks: _Optional[_Iterable[_Union[DiskStatus, _Mapping]]] = ..., watchers: _Optional[int] = ..., max_watchers: _Optional[int] = ..., max_concurrent_runs: _Optional[int] = ...) -> None: ...

class ThreadStatus(_message.Message):
    __slots__ = ("name", "alive")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    name: str
    alive: bool
    def __init__(self, name: _Optional[str] = ..., alive: _Optional[bool] = ...) -> None: ...

class DiskStatus(_message.Message):
    __slots__ = ("what", "path", "used_bytes", "free_bytes", "total_bytes")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    what: str
    path: str
    used_bytes: int
    free_bytes: int
    total_bytes: int
    def __init__(self, what: _Optional[str] = ..., path: _Optional[str] = ..., used_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class RunLine(_message.Message):
    __slots__ = ("run_id", "name", "status", "round", "rounds", "sealing", "detail", "submitted_at", "started_at", "ended_at", "administrator", "method", "data", "privacy_unit", "cohort", "organizations", "waits_for", "waits_reason", "waiting_since", "paused_by", "paused_at", "pause_reason", "parent_run_id", "parent_round", "priority", "short_rounds", "last_event", "privacy_epsilon", "deleted_by", "deleted_at")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    SEALING_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    ADMINISTRATOR_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_UNIT_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    ORGANIZATIONS_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    WAITS_REASON_FIELD_NUMBER: _ClassVar[int]
    WAITING_SINCE_FIELD_NUMBER: _ClassVar[int]
    PAUSED_BY_FIELD_NUMBER: _ClassVar[int]
    PAUSED_AT_FIELD_NUMBER: _ClassVar[int]
    PAUSE_REASON_FIELD_NUMBER: _ClassVar[int]
    PARENT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_ROUND_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SHORT_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELETED_BY_FIELD_NUMBER: _ClassVar[int]
    DELETED_AT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    name: str
    status: str
    round: int
    rounds: int
    sealing: str
    detail: str
    submitted_at: float
    started_at: float
    ended_at: float
    administrator: str
    method: str
    data: str
    privacy_unit: str
    cohort: _containers.RepeatedScalarFieldContainer[str]
    organizations: int
    waits_for: _containers.RepeatedScalarFieldContainer[str]
    waits_reason: str
    waiting_since: float
    paused_by: str
    paused_at: float
    pause_reason: str
    parent_run_id: str
    parent_round: int
    priority: int
    short_rounds: int
    last_event: int
    privacy_epsilon: float
    deleted_by: str
    deleted_at: float
    def __init__(self, run_id: _Optional[str] = ..., name: _Optional[str] = ..., status: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., sealing: _Optional[str] = ..., detail: _Optional[str] = ..., submitted_at: _Optional[float] = ..., started_at: _Optional[float] = ..., ended_at: _Optional[float] = ..., administrator: _Optional[str] = ..., method: _Optional[str] = ..., data: _Optional[str] = ..., privacy_unit: _Optional[str] = ..., cohort: _Optional[_Iterable[str]] = ..., organizations: _Optional[int] = ..., waits_for: _Optional[_Iterable[str]] = ..., waits_reason: _Optional[str] = ..., waiting_since: _Optional[float] = ..., paused_by: _Optional[str] = ..., paused_at: _Optional[float] = ..., pause_reason: _Optional[str] = ..., parent_run_id: _Optional[str] = ..., parent_round: _Optional[int] = ..., priority: _Optional[int] = ..., short_rounds: _Optional[int] = ..., last_event: _Optional[int] = ..., privacy_epsilon: _Optional[float] = ..., deleted_by: _Optional[str] = ..., deleted_at: _Optional[float] = ...) -> None: ...

class SubmitRunRequest(_message.Message):
    __slots__ = ("idempotency_key", "header", "chunk")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    header: SubmitRunHeader
    chunk: bytes
    def __init__(self, idempotency_key: _Optional[str] = ..., header: _Optional[_Union[SubmitRunHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class SubmitRunHeader(_message.Message):
    __slots__ = ("specification", "initial_model_sha256", "signature", "initial_model_bytes", "schema", "run_id", "nonce", "expires_at", "parent_run_id", "parent_round", "administrator")
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
    ADMINISTRATOR_FIELD_NUMBER: _ClassVar[int]
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
    administrator: str
    def __init__(self, specification: _Optional[bytes] = ..., initial_model_sha256: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., initial_model_bytes: _Optional[int] = ..., schema: _Optional[bytes] = ..., run_id: _Optional[str] = ..., nonce: _Optional[bytes] = ..., expires_at: _Optional[int] = ..., parent_run_id: _Optional[str] = ..., parent_round: _Optional[int] = ..., administrator: _Optional[str] = ...) -> None: ...

class ListRunsQuery(_message.Message):
    __slots__ = ("statuses", "name_contains", "organization", "administrator", "method", "parent_run_id", "run_id_prefix", "limit", "cursor", "run_ids")
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    NAME_CONTAINS_FIELD_NUMBER: _ClassVar[int]
    ORGANIZATION_FIELD_NUMBER: _ClassVar[int]
    ADMINISTRATOR_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PARENT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_PREFIX_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    RUN_IDS_FIELD_NUMBER: _ClassVar[int]
    statuses: _containers.RepeatedScalarFieldContainer[str]
    name_contains: str
    organization: str
    administrator: str
    method: str
    parent_run_id: str
    run_id_prefix: str
    limit: int
    cursor: str
    run_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, statuses: _Optional[_Iterable[str]] = ..., name_contains: _Optional[str] = ..., organization: _Optional[str] = ..., administrator: _Optional[str] = ..., method: _Optional[str] = ..., parent_run_id: _Optional[str] = ..., run_id_prefix: _Optional[str] = ..., limit: _Optional[int] = ..., cursor: _Optional[str] = ..., run_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class RunPage(_message.Message):
    __slots__ = ("clock", "runs", "next_cursor", "total")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_CURSOR_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    clock: float
    runs: _containers.RepeatedCompositeFieldContainer[RunLine]
    next_cursor: str
    total: int
    def __init__(self, clock: _Optional[float] = ..., runs: _Optional[_Iterable[_Union[RunLine, _Mapping]]] = ..., next_cursor: _Optional[str] = ..., total: _Optional[int] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run_id", "without_plan")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_PLAN_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    without_plan: bool
    def __init__(self, run_id: _Optional[str] = ..., without_plan: _Optional[bool] = ...) -> None: ...

class RunDetail(_message.Message):
    __slots__ = ("clock", "run", "specification", "specification_sha256", "specification_toml", "plan", "initial_model_sha256", "model_sha256", "expires_at", "offers", "signed_by", "children", "stop_requested_by", "privacy", "spent", "nonce", "signature", "signatures_needed")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    SPECIFICATION_FIELD_NUMBER: _ClassVar[int]
    SPECIFICATION_SHA256_FIELD_NUMBER: _ClassVar[int]
    SPECIFICATION_TOML_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    INITIAL_MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    SIGNED_BY_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_FIELD_NUMBER: _ClassVar[int]
    STOP_REQUESTED_BY_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_NEEDED_FIELD_NUMBER: _ClassVar[int]
    clock: float
    run: RunLine
    specification: bytes
    specification_sha256: str
    specification_toml: str
    plan: str
    initial_model_sha256: str
    model_sha256: str
    expires_at: float
    offers: _containers.RepeatedCompositeFieldContainer[OfferLine]
    signed_by: _containers.RepeatedScalarFieldContainer[str]
    children: _containers.RepeatedScalarFieldContainer[str]
    stop_requested_by: str
    privacy: PrivacyClaim
    spent: _containers.RepeatedCompositeFieldContainer[PrivacyLine]
    nonce: bytes
    signature: bytes
    signatures_needed: int
    def __init__(self, clock: _Optional[float] = ..., run: _Optional[_Union[RunLine, _Mapping]] = ..., specification: _Optional[bytes] = ..., specification_sha256: _Optional[str] = ..., specification_toml: _Optional[str] = ..., plan: _Optional[str] = ..., initial_model_sha256: _Optional[str] = ..., model_sha256: _Optional[str] = ..., expires_at: _Optional[float] = ..., offers: _Optional[_Iterable[_Union[OfferLine, _Mapping]]] = ..., signed_by: _Optional[_Iterable[str]] = ..., children: _Optional[_Iterable[str]] = ..., stop_requested_by: _Optional[str] = ..., privacy: _Optional[_Union[PrivacyClaim, _Mapping]] = ..., spent: _Optional[_Iterable[_Union[PrivacyLine, _Mapping]]] = ..., nonce: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., signatures_needed: _Optional[int] = ...) -> None: ...

class OfferLine(_message.Message):
    __slots__ = ("node", "answer", "reason", "at", "round_s", "precision")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    ROUND_S_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    node: str
    answer: str
    reason: str
    at: float
    round_s: float
    precision: str
    def __init__(self, node: _Optional[str] = ..., answer: _Optional[str] = ..., reason: _Optional[str] = ..., at: _Optional[float] = ..., round_s: _Optional[float] = ..., precision: _Optional[str] = ...) -> None: ...

class PrivacyClaim(_message.Message):
    __slots__ = ("unit", "epsilon", "delta")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    unit: str
    epsilon: float
    delta: float
    def __init__(self, unit: _Optional[str] = ..., epsilon: _Optional[float] = ..., delta: _Optional[float] = ...) -> None: ...

class ListRoundsRequest(_message.Message):
    __slots__ = ("run_id", "after_round", "limit", "without_participation")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_ROUND_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_PARTICIPATION_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    after_round: int
    limit: int
    without_participation: bool
    def __init__(self, run_id: _Optional[str] = ..., after_round: _Optional[int] = ..., limit: _Optional[int] = ..., without_participation: _Optional[bool] = ...) -> None: ...

class RoundPage(_message.Message):
    __slots__ = ("clock", "rounds", "more")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    clock: float
    rounds: _containers.RepeatedCompositeFieldContainer[RoundLine]
    more: bool
    def __init__(self, clock: _Optional[float] = ..., rounds: _Optional[_Iterable[_Union[RoundLine, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class RoundLine(_message.Message):
    __slots__ = ("round", "attempts", "committed_at", "seconds", "phases", "update_norm", "metrics", "model_sha256", "participation", "contributors", "received_bytes", "promise")
    class PhasesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Metric
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Metric, _Mapping]] = ...) -> None: ...
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    UPDATE_NORM_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    PARTICIPATION_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTORS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROMISE_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempts: int
    committed_at: float
    seconds: float
    phases: _containers.ScalarMap[str, float]
    update_norm: float
    metrics: _containers.MessageMap[str, Metric]
    model_sha256: str
    participation: _containers.RepeatedCompositeFieldContainer[Participation]
    contributors: int
    received_bytes: int
    promise: str
    def __init__(self, round: _Optional[int] = ..., attempts: _Optional[int] = ..., committed_at: _Optional[float] = ..., seconds: _Optional[float] = ..., phases: _Optional[_Mapping[str, float]] = ..., update_norm: _Optional[float] = ..., metrics: _Optional[_Mapping[str, Metric]] = ..., model_sha256: _Optional[str] = ..., participation: _Optional[_Iterable[_Union[Participation, _Mapping]]] = ..., contributors: _Optional[int] = ..., received_bytes: _Optional[int] = ..., promise: _Optional[str] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("mean", "count")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    mean: float
    count: float
    def __init__(self, mean: _Optional[float] = ..., count: _Optional[float] = ...) -> None: ...

class Participation(_message.Message):
    __slots__ = ("organization", "state", "code", "reason", "bytes")
    ORGANIZATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    organization: str
    state: str
    code: str
    reason: str
    bytes: int
    def __init__(self, organization: _Optional[str] = ..., state: _Optional[str] = ..., code: _Optional[str] = ..., reason: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class PauseRunRequest(_message.Message):
    __slots__ = ("idempotency_key", "run_id", "reason")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    run_id: str
    reason: str
    def __init__(self, idempotency_key: _Optional[str] = ..., run_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ResumeRunRequest(_message.Message):
    __slots__ = ("idempotency_key", "run_id")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    run_id: str
    def __init__(self, idempotency_key: _Optional[str] = ..., run_id: _Optional[str] = ...) -> None: ...

class OrderStopRequest(_message.Message):
    __slots__ = ("idempotency_key", "run_id", "administrator", "signature")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ADMINISTRATOR_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    run_id: str
    administrator: str
    signature: bytes
    def __init__(self, idempotency_key: _Optional[str] = ..., run_id: _Optional[str] = ..., administrator: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ContinueRunRequest(_message.Message):
    __slots__ = ("idempotency_key", "administrator", "specification", "initial_model_sha256", "signature", "run_id", "nonce", "expires_at", "parent_run_id", "parent_round")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    ADMINISTRATOR_FIELD_NUMBER: _ClassVar[int]
    SPECIFICATION_FIELD_NUMBER: _ClassVar[int]
    INITIAL_MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    PARENT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_ROUND_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    administrator: str
    specification: bytes
    initial_model_sha256: bytes
    signature: bytes
    run_id: str
    nonce: bytes
    expires_at: int
    parent_run_id: str
    parent_round: int
    def __init__(self, idempotency_key: _Optional[str] = ..., administrator: _Optional[str] = ..., specification: _Optional[bytes] = ..., initial_model_sha256: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., run_id: _Optional[str] = ..., nonce: _Optional[bytes] = ..., expires_at: _Optional[int] = ..., parent_run_id: _Optional[str] = ..., parent_round: _Optional[int] = ...) -> None: ...

class CosignRunRequest(_message.Message):
    __slots__ = ("idempotency_key", "run_id", "administrator", "signature")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ADMINISTRATOR_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    run_id: str
    administrator: str
    signature: bytes
    def __init__(self, idempotency_key: _Optional[str] = ..., run_id: _Optional[str] = ..., administrator: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class DeleteRunRequest(_message.Message):
    __slots__ = ("idempotency_key", "run_id")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    run_id: str
    def __init__(self, idempotency_key: _Optional[str] = ..., run_id: _Optional[str] = ...) -> None: ...

class SetPriorityRequest(_message.Message):
    __slots__ = ("idempotency_key", "run_id", "priority")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    run_id: str
    priority: int
    def __init__(self, idempotency_key: _Optional[str] = ..., run_id: _Optional[str] = ..., priority: _Optional[int] = ...) -> None: ...

class RunChanged(_message.Message):
    __slots__ = ("clock", "run")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    clock: float
    run: RunLine
    def __init__(self, clock: _Optional[float] = ..., run: _Optional[_Union[RunLine, _Mapping]] = ...) -> None: ...

class StreamEventsRequest(_message.Message):
    __slots__ = ("run_id", "after", "newest_only", "past_only")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    NEWEST_ONLY_FIELD_NUMBER: _ClassVar[int]
    PAST_ONLY_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    after: int
    newest_only: bool
    past_only: bool
    def __init__(self, run_id: _Optional[str] = ..., after: _Optional[int] = ..., newest_only: _Optional[bool] = ..., past_only: _Optional[bool] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("clock", "number", "run_id", "sequence", "time", "kind", "offer_answered", "run_started", "epoch_started", "round_started", "contributed", "dropped", "slot_abandoned", "round_committed", "paused", "resumed", "run_finished", "run_failed", "run_stopped", "progress", "run_paused", "run_resumed", "run_submitted", "alive", "run_waits", "run_cosigned", "run_deleted")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    OFFER_ANSWERED_FIELD_NUMBER: _ClassVar[int]
    RUN_STARTED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_STARTED_FIELD_NUMBER: _ClassVar[int]
    ROUND_STARTED_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    SLOT_ABANDONED_FIELD_NUMBER: _ClassVar[int]
    ROUND_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    RUN_FINISHED_FIELD_NUMBER: _ClassVar[int]
    RUN_FAILED_FIELD_NUMBER: _ClassVar[int]
    RUN_STOPPED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RUN_PAUSED_FIELD_NUMBER: _ClassVar[int]
    RUN_RESUMED_FIELD_NUMBER: _ClassVar[int]
    RUN_SUBMITTED_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    RUN_WAITS_FIELD_NUMBER: _ClassVar[int]
    RUN_COSIGNED_FIELD_NUMBER: _ClassVar[int]
    RUN_DELETED_FIELD_NUMBER: _ClassVar[int]
    clock: float
    number: int
    run_id: str
    sequence: int
    time: float
    kind: str
    offer_answered: OfferAnswered
    run_started: RunStarted
    epoch_started: EpochStarted
    round_started: RoundStarted
    contributed: Contributed
    dropped: Dropped
    slot_abandoned: SlotAbandoned
    round_committed: RoundCommitted
    paused: WaitingForMembers
    resumed: MembersReturned
    run_finished: RunFinished
    run_failed: RunFailed
    run_stopped: RunStopped
    progress: WorkProgress
    run_paused: PausedByOperator
    run_resumed: ResumedByOperator
    run_submitted: RunSubmitted
    alive: Alive
    run_waits: RunWaits
    run_cosigned: RunCosigned
    run_deleted: RunDeleted
    def __init__(self, clock: _Optional[float] = ..., number: _Optional[int] = ..., run_id: _Optional[str] = ..., sequence: _Optional[int] = ..., time: _Optional[float] = ..., kind: _Optional[str] = ..., offer_answered: _Optional[_Union[OfferAnswered, _Mapping]] = ..., run_started: _Optional[_Union[RunStarted, _Mapping]] = ..., epoch_started: _Optional[_Union[EpochStarted, _Mapping]] = ..., round_started: _Optional[_Union[RoundStarted, _Mapping]] = ..., contributed: _Optional[_Union[Contributed, _Mapping]] = ..., dropped: _Optional[_Union[Dropped, _Mapping]] = ..., slot_abandoned: _Optional[_Union[SlotAbandoned, _Mapping]] = ..., round_committed: _Optional[_Union[RoundCommitted, _Mapping]] = ..., paused: _Optional[_Union[WaitingForMembers, _Mapping]] = ..., resumed: _Optional[_Union[MembersReturned, _Mapping]] = ..., run_finished: _Optional[_Union[RunFinished, _Mapping]] = ..., run_failed: _Optional[_Union[RunFailed, _Mapping]] = ..., run_stopped: _Optional[_Union[RunStopped, _Mapping]] = ..., progress: _Optional[_Union[WorkProgress, _Mapping]] = ..., run_paused: _Optional[_Union[PausedByOperator, _Mapping]] = ..., run_resumed: _Optional[_Union[ResumedByOperator, _Mapping]] = ..., run_submitted: _Optional[_Union[RunSubmitted, _Mapping]] = ..., alive: _Optional[_Union[Alive, _Mapping]] = ..., run_waits: _Optional[_Union[RunWaits, _Mapping]] = ..., run_cosigned: _Optional[_Union[RunCosigned, _Mapping]] = ..., run_deleted: _Optional[_Union[RunDeleted, _Mapping]] = ...) -> None: ...

class OfferAnswered(_message.Message):
    __slots__ = ("node", "accepted", "waiting", "preparing", "reason", "round_s", "precision", "hardware")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PREPARING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ROUND_S_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    node: str
    accepted: bool
    waiting: bool
    preparing: bool
    reason: str
    round_s: float
    precision: str
    hardware: _fleet_pb2.Hardware
    def __init__(self, node: _Optional[str] = ..., accepted: _Optional[bool] = ..., waiting: _Optional[bool] = ..., preparing: _Optional[bool] = ..., reason: _Optional[str] = ..., round_s: _Optional[float] = ..., precision: _Optional[str] = ..., hardware: _Optional[_Union[_fleet_pb2.Hardware, _Mapping]] = ...) -> None: ...

class RunStarted(_message.Message):
    __slots__ = ("nodes", "rounds", "sealing", "name", "differences")
    NODES_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    SEALING_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedScalarFieldContainer[str]
    rounds: int
    sealing: str
    name: str
    differences: str
    def __init__(self, nodes: _Optional[_Iterable[str]] = ..., rounds: _Optional[int] = ..., sealing: _Optional[str] = ..., name: _Optional[str] = ..., differences: _Optional[str] = ...) -> None: ...

class EpochStarted(_message.Message):
    __slots__ = ("members", "slots")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedScalarFieldContainer[str]
    slots: int
    def __init__(self, members: _Optional[_Iterable[str]] = ..., slots: _Optional[int] = ...) -> None: ...

class RoundStarted(_message.Message):
    __slots__ = ("round", "attempt", "slot", "deadline_s")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempt: int
    slot: int
    deadline_s: float
    def __init__(self, round: _Optional[int] = ..., attempt: _Optional[int] = ..., slot: _Optional[int] = ..., deadline_s: _Optional[float] = ...) -> None: ...

class Contributed(_message.Message):
    __slots__ = ("round", "node", "bytes")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    round: int
    node: str
    bytes: int
    def __init__(self, round: _Optional[int] = ..., node: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class Dropped(_message.Message):
    __slots__ = ("round", "node", "code", "reason")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    round: int
    node: str
    code: str
    reason: str
    def __init__(self, round: _Optional[int] = ..., node: _Optional[str] = ..., code: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class SlotAbandoned(_message.Message):
    __slots__ = ("round", "attempt", "code", "reason")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempt: int
    code: str
    reason: str
    def __init__(self, round: _Optional[int] = ..., attempt: _Optional[int] = ..., code: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RoundCommitted(_message.Message):
    __slots__ = ("round", "metrics", "contributors", "dropped", "seconds", "model_sha256", "update_norm")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Metric
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Metric, _Mapping]] = ...) -> None: ...
    class DroppedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ROUND_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTORS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    UPDATE_NORM_FIELD_NUMBER: _ClassVar[int]
    round: int
    metrics: _containers.MessageMap[str, Metric]
    contributors: _containers.RepeatedScalarFieldContainer[str]
    dropped: _containers.ScalarMap[str, str]
    seconds: float
    model_sha256: str
    update_norm: float
    def __init__(self, round: _Optional[int] = ..., metrics: _Optional[_Mapping[str, Metric]] = ..., contributors: _Optional[_Iterable[str]] = ..., dropped: _Optional[_Mapping[str, str]] = ..., seconds: _Optional[float] = ..., model_sha256: _Optional[str] = ..., update_norm: _Optional[float] = ...) -> None: ...

class WaitingForMembers(_message.Message):
    __slots__ = ("round", "missing")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    round: int
    missing: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, round: _Optional[int] = ..., missing: _Optional[_Iterable[str]] = ...) -> None: ...

class MembersReturned(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: int
    def __init__(self, round: _Optional[int] = ...) -> None: ...

class RunFinished(_message.Message):
    __slots__ = ("rounds", "model_sha256")
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    rounds: int
    model_sha256: str
    def __init__(self, rounds: _Optional[int] = ..., model_sha256: _Optional[str] = ...) -> None: ...

class RunFailed(_message.Message):
    __slots__ = ("code", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: str
    reason: str
    def __init__(self, code: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RunStopped(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: int
    def __init__(self, round: _Optional[int] = ...) -> None: ...

class WorkProgress(_message.Message):
    __slots__ = ("node", "phase", "step", "steps", "seconds_left")
    NODE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    node: str
    phase: str
    step: int
    steps: int
    seconds_left: float
    def __init__(self, node: _Optional[str] = ..., phase: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., seconds_left: _Optional[float] = ...) -> None: ...

class PausedByOperator(_message.Message):
    __slots__ = ("by", "reason", "round")
    BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    by: str
    reason: str
    round: int
    def __init__(self, by: _Optional[str] = ..., reason: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class ResumedByOperator(_message.Message):
    __slots__ = ("by", "round")
    BY_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    by: str
    round: int
    def __init__(self, by: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class RunSubmitted(_message.Message):
    __slots__ = ("name", "administrator", "parent_run_id", "parent_round")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADMINISTRATOR_FIELD_NUMBER: _ClassVar[int]
    PARENT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_ROUND_FIELD_NUMBER: _ClassVar[int]
    name: str
    administrator: str
    parent_run_id: str
    parent_round: int
    def __init__(self, name: _Optional[str] = ..., administrator: _Optional[str] = ..., parent_run_id: _Optional[str] = ..., parent_round: _Optional[int] = ...) -> None: ...

class RunCosigned(_message.Message):
    __slots__ = ("by", "complete")
    BY_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    by: str
    complete: bool
    def __init__(self, by: _Optional[str] = ..., complete: _Optional[bool] = ...) -> None: ...

class RunDeleted(_message.Message):
    __slots__ = ("by",)
    BY_FIELD_NUMBER: _ClassVar[int]
    by: str
    def __init__(self, by: _Optional[str] = ...) -> None: ...

class RunWaits(_message.Message):
    __slots__ = ("waits_for", "reason")
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    waits_for: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    def __init__(self, waits_for: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ...) -> None: ...

class Alive(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListMembersRequest(_message.Message):
    __slots__ = ("role",)
    ROLE_FIELD_NUMBER: _ClassVar[int]
    role: str
    def __init__(self, role: _Optional[str] = ...) -> None: ...

class MemberPage(_message.Message):
    __slots__ = ("clock", "members", "roster_version")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    clock: float
    members: _containers.RepeatedCompositeFieldContainer[MemberLine]
    roster_version: int
    def __init__(self, clock: _Optional[float] = ..., members: _Optional[_Iterable[_Union[MemberLine, _Mapping]]] = ..., roster_version: _Optional[int] = ...) -> None: ...

class MemberLine(_message.Message):
    __slots__ = ("name", "role", "state", "last_seen", "release", "certificate_expires_at", "admitted_at", "revoked_at", "identity_key", "group", "block", "run_id", "work", "precision", "round_s", "hardware")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_AT_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_KEY_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    ROUND_S_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    state: str
    last_seen: float
    release: str
    certificate_expires_at: float
    admitted_at: float
    revoked_at: float
    identity_key: str
    group: str
    block: str
    run_id: str
    work: WorkProgress
    precision: str
    round_s: float
    hardware: _fleet_pb2.Hardware
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., state: _Optional[str] = ..., last_seen: _Optional[float] = ..., release: _Optional[str] = ..., certificate_expires_at: _Optional[float] = ..., admitted_at: _Optional[float] = ..., revoked_at: _Optional[float] = ..., identity_key: _Optional[str] = ..., group: _Optional[str] = ..., block: _Optional[str] = ..., run_id: _Optional[str] = ..., work: _Optional[_Union[WorkProgress, _Mapping]] = ..., precision: _Optional[str] = ..., round_s: _Optional[float] = ..., hardware: _Optional[_Union[_fleet_pb2.Hardware, _Mapping]] = ...) -> None: ...

class GetSignedRosterRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class SignedRosterReply(_message.Message):
    __slots__ = ("clock", "version", "roster")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    clock: float
    version: int
    roster: bytes
    def __init__(self, clock: _Optional[float] = ..., version: _Optional[int] = ..., roster: _Optional[bytes] = ...) -> None: ...

class ListRostersRequest(_message.Message):
    __slots__ = ("limit", "before_version")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_VERSION_FIELD_NUMBER: _ClassVar[int]
    limit: int
    before_version: int
    def __init__(self, limit: _Optional[int] = ..., before_version: _Optional[int] = ...) -> None: ...

class RosterPage(_message.Message):
    __slots__ = ("clock", "rosters")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    ROSTERS_FIELD_NUMBER: _ClassVar[int]
    clock: float
    rosters: _containers.RepeatedCompositeFieldContainer[RosterLine]
    def __init__(self, clock: _Optional[float] = ..., rosters: _Optional[_Iterable[_Union[RosterLine, _Mapping]]] = ...) -> None: ...

class RosterLine(_message.Message):
    __slots__ = ("version", "sha256", "issued_at", "expires_at", "members", "admitted", "revoked")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    version: int
    sha256: str
    issued_at: float
    expires_at: float
    members: int
    admitted: _containers.RepeatedScalarFieldContainer[str]
    revoked: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[int] = ..., sha256: _Optional[str] = ..., issued_at: _Optional[float] = ..., expires_at: _Optional[float] = ..., members: _Optional[int] = ..., admitted: _Optional[_Iterable[str]] = ..., revoked: _Optional[_Iterable[str]] = ...) -> None: ...

class TakeRosterRequest(_message.Message):
    __slots__ = ("idempotency_key", "roster")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    roster: bytes
    def __init__(self, idempotency_key: _Optional[str] = ..., roster: _Optional[bytes] = ...) -> None: ...

class RosterTaken(_message.Message):
    __slots__ = ("clock", "version", "admitted", "revoked")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    clock: float
    version: int
    admitted: _containers.RepeatedScalarFieldContainer[str]
    revoked: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, clock: _Optional[float] = ..., version: _Optional[int] = ..., admitted: _Optional[_Iterable[str]] = ..., revoked: _Optional[_Iterable[str]] = ...) -> None: ...

class ListEnrolmentsRequest(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: str
    def __init__(self, after: _Optional[str] = ...) -> None: ...

class EnrolmentPage(_message.Message):
    __slots__ = ("clock", "enrolments", "next_after")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    ENROLMENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_AFTER_FIELD_NUMBER: _ClassVar[int]
    clock: float
    enrolments: _containers.RepeatedCompositeFieldContainer[EnrolmentLine]
    next_after: str
    def __init__(self, clock: _Optional[float] = ..., enrolments: _Optional[_Iterable[_Union[EnrolmentLine, _Mapping]]] = ..., next_after: _Optional[str] = ...) -> None: ...

class EnrolmentLine(_message.Message):
    __slots__ = ("name", "role", "identity_key", "asked_at", "invited", "renewal", "request")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_KEY_FIELD_NUMBER: _ClassVar[int]
    ASKED_AT_FIELD_NUMBER: _ClassVar[int]
    INVITED_FIELD_NUMBER: _ClassVar[int]
    RENEWAL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    identity_key: str
    asked_at: float
    invited: bool
    renewal: bool
    request: bytes
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., identity_key: _Optional[str] = ..., asked_at: _Optional[float] = ..., invited: _Optional[bool] = ..., renewal: _Optional[bool] = ..., request: _Optional[bytes] = ...) -> None: ...

class AdmitMemberRequest(_message.Message):
    __slots__ = ("idempotency_key", "admission")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    admission: bytes
    def __init__(self, idempotency_key: _Optional[str] = ..., admission: _Optional[bytes] = ...) -> None: ...

class MemberAdmitted(_message.Message):
    __slots__ = ("clock", "name", "roster_version")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    clock: float
    name: str
    roster_version: int
    def __init__(self, clock: _Optional[float] = ..., name: _Optional[str] = ..., roster_version: _Optional[int] = ...) -> None: ...

class ListReceiptsRequest(_message.Message):
    __slots__ = ("run_id", "organization", "after", "limit")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ORGANIZATION_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    organization: str
    after: int
    limit: int
    def __init__(self, run_id: _Optional[str] = ..., organization: _Optional[str] = ..., after: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class ReceiptPage(_message.Message):
    __slots__ = ("clock", "receipts", "more")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    clock: float
    receipts: _containers.RepeatedCompositeFieldContainer[ReceiptLine]
    more: bool
    def __init__(self, clock: _Optional[float] = ..., receipts: _Optional[_Iterable[_Union[ReceiptLine, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class ReceiptLine(_message.Message):
    __slots__ = ("number", "run_id", "organization", "receipt", "signature", "group", "slot", "spent_slots", "approved_slots")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ORGANIZATION_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    SPENT_SLOTS_FIELD_NUMBER: _ClassVar[int]
    APPROVED_SLOTS_FIELD_NUMBER: _ClassVar[int]
    number: int
    run_id: str
    organization: str
    receipt: bytes
    signature: bytes
    group: str
    slot: int
    spent_slots: int
    approved_slots: int
    def __init__(self, number: _Optional[int] = ..., run_id: _Optional[str] = ..., organization: _Optional[str] = ..., receipt: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., group: _Optional[str] = ..., slot: _Optional[int] = ..., spent_slots: _Optional[int] = ..., approved_slots: _Optional[int] = ...) -> None: ...

class GetPrivacySpentRequest(_message.Message):
    __slots__ = ("organization", "run_ids", "of_named", "summed")
    ORGANIZATION_FIELD_NUMBER: _ClassVar[int]
    RUN_IDS_FIELD_NUMBER: _ClassVar[int]
    OF_NAMED_FIELD_NUMBER: _ClassVar[int]
    SUMMED_FIELD_NUMBER: _ClassVar[int]
    organization: str
    run_ids: _containers.RepeatedScalarFieldContainer[str]
    of_named: bool
    summed: bool
    def __init__(self, organization: _Optional[str] = ..., run_ids: _Optional[_Iterable[str]] = ..., of_named: _Optional[bool] = ..., summed: _Optional[bool] = ...) -> None: ...

class PrivacySpent(_message.Message):
    __slots__ = ("clock", "spent")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    clock: float
    spent: _containers.RepeatedCompositeFieldContainer[PrivacyLine]
    def __init__(self, clock: _Optional[float] = ..., spent: _Optional[_Iterable[_Union[PrivacyLine, _Mapping]]] = ...) -> None: ...

class PrivacyLine(_message.Message):
    __slots__ = ("organization", "group", "run_id", "run_name", "unit", "spent_slots", "approved_slots", "epsilon_claimed", "epsilon_spent_at_most", "delta", "run_at", "runs")
    ORGANIZATION_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_NAME_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    SPENT_SLOTS_FIELD_NUMBER: _ClassVar[int]
    APPROVED_SLOTS_FIELD_NUMBER: _ClassVar[int]
    EPSILON_CLAIMED_FIELD_NUMBER: _ClassVar[int]
    EPSILON_SPENT_AT_MOST_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    RUN_AT_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    organization: str
    group: str
    run_id: str
    run_name: str
    unit: str
    spent_slots: int
    approved_slots: int
    epsilon_claimed: float
    epsilon_spent_at_most: float
    delta: float
    run_at: float
    runs: int
    def __init__(self, organization: _Optional[str] = ..., group: _Optional[str] = ..., run_id: _Optional[str] = ..., run_name: _Optional[str] = ..., unit: _Optional[str] = ..., spent_slots: _Optional[int] = ..., approved_slots: _Optional[int] = ..., epsilon_claimed: _Optional[float] = ..., epsilon_spent_at_most: _Optional[float] = ..., delta: _Optional[float] = ..., run_at: _Optional[float] = ..., runs: _Optional[int] = ...) -> None: ...

class ExportRunRequest(_message.Message):
    __slots__ = ("run_id", "round")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class ExportRunReply(_message.Message):
    __slots__ = ("clock", "header", "chunk")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    clock: float
    header: ExportRunHeader
    chunk: bytes
    def __init__(self, clock: _Optional[float] = ..., header: _Optional[_Union[ExportRunHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class ExportRunHeader(_message.Message):
    __slots__ = ("manifest_bytes", "model_bytes")
    MANIFEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    manifest_bytes: int
    model_bytes: int
    def __init__(self, manifest_bytes: _Optional[int] = ..., model_bytes: _Optional[int] = ...) -> None: ...

class ListCheckpointsRequest(_message.Message):
    __slots__ = ("run_id", "after_round", "from_first", "limit")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_ROUND_FIELD_NUMBER: _ClassVar[int]
    FROM_FIRST_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    after_round: int
    from_first: bool
    limit: int
    def __init__(self, run_id: _Optional[str] = ..., after_round: _Optional[int] = ..., from_first: _Optional[bool] = ..., limit: _Optional[int] = ...) -> None: ...

class CheckpointPage(_message.Message):
    __slots__ = ("clock", "checkpoints", "more")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    clock: float
    checkpoints: _containers.RepeatedCompositeFieldContainer[CheckpointLine]
    more: bool
    def __init__(self, clock: _Optional[float] = ..., checkpoints: _Optional[_Iterable[_Union[CheckpointLine, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class CheckpointLine(_message.Message):
    __slots__ = ("run_id", "round", "model_sha256", "bytes", "committed_at", "releases")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    model_sha256: str
    bytes: int
    committed_at: float
    releases: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ..., model_sha256: _Optional[str] = ..., bytes: _Optional[int] = ..., committed_at: _Optional[float] = ..., releases: _Optional[_Iterable[str]] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("clock", "name", "number", "status", "document", "sha256", "run_id", "round", "model_sha256", "notes", "created_by", "created_at", "signatures", "signatures_needed", "published_at", "published_by", "current", "gate", "evidence_sha256", "evidence_by", "overridden_by")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_NEEDED_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_AT_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_BY_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_SHA256_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_BY_FIELD_NUMBER: _ClassVar[int]
    OVERRIDDEN_BY_FIELD_NUMBER: _ClassVar[int]
    clock: float
    name: str
    number: int
    status: str
    document: bytes
    sha256: str
    run_id: str
    round: int
    model_sha256: str
    notes: str
    created_by: str
    created_at: float
    signatures: _containers.RepeatedCompositeFieldContainer[ReleaseSignature]
    signatures_needed: int
    published_at: float
    published_by: str
    current: bool
    gate: str
    evidence_sha256: str
    evidence_by: str
    overridden_by: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, clock: _Optional[float] = ..., name: _Optional[str] = ..., number: _Optional[int] = ..., status: _Optional[str] = ..., document: _Optional[bytes] = ..., sha256: _Optional[str] = ..., run_id: _Optional[str] = ..., round: _Optional[int] = ..., model_sha256: _Optional[str] = ..., notes: _Optional[str] = ..., created_by: _Optional[str] = ..., created_at: _Optional[float] = ..., signatures: _Optional[_Iterable[_Union[ReleaseSignature, _Mapping]]] = ..., signatures_needed: _Optional[int] = ..., published_at: _Optional[float] = ..., published_by: _Optional[str] = ..., current: _Optional[bool] = ..., gate: _Optional[str] = ..., evidence_sha256: _Optional[str] = ..., evidence_by: _Optional[str] = ..., overridden_by: _Optional[_Iterable[str]] = ...) -> None: ...

class ReleaseSignature(_message.Message):
    __slots__ = ("administrator", "signature", "at")
    ADMINISTRATOR_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    administrator: str
    signature: bytes
    at: float
    def __init__(self, administrator: _Optional[str] = ..., signature: _Optional[bytes] = ..., at: _Optional[float] = ...) -> None: ...

class CreateReleaseRequest(_message.Message):
    __slots__ = ("idempotency_key", "name", "run_id", "round", "notes", "aligned")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    ALIGNED_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    name: str
    run_id: str
    round: int
    notes: str
    aligned: bytes
    def __init__(self, idempotency_key: _Optional[str] = ..., name: _Optional[str] = ..., run_id: _Optional[str] = ..., round: _Optional[int] = ..., notes: _Optional[str] = ..., aligned: _Optional[bytes] = ...) -> None: ...

class SignReleaseRequest(_message.Message):
    __slots__ = ("idempotency_key", "name", "number", "administrator", "signature")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ADMINISTRATOR_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    name: str
    number: int
    administrator: str
    signature: bytes
    def __init__(self, idempotency_key: _Optional[str] = ..., name: _Optional[str] = ..., number: _Optional[int] = ..., administrator: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class AttachEvidenceRequest(_message.Message):
    __slots__ = ("idempotency_key", "name", "number", "signer", "evidence")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    name: str
    number: int
    signer: str
    evidence: bytes
    def __init__(self, idempotency_key: _Optional[str] = ..., name: _Optional[str] = ..., number: _Optional[int] = ..., signer: _Optional[str] = ..., evidence: _Optional[bytes] = ...) -> None: ...

class OverrideGateRequest(_message.Message):
    __slots__ = ("idempotency_key", "name", "number", "administrator", "reason", "signature")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ADMINISTRATOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    name: str
    number: int
    administrator: str
    reason: str
    signature: bytes
    def __init__(self, idempotency_key: _Optional[str] = ..., name: _Optional[str] = ..., number: _Optional[int] = ..., administrator: _Optional[str] = ..., reason: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class PublishReleaseRequest(_message.Message):
    __slots__ = ("idempotency_key", "name", "number")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    name: str
    number: int
    def __init__(self, idempotency_key: _Optional[str] = ..., name: _Optional[str] = ..., number: _Optional[int] = ...) -> None: ...

class RollBackReleaseRequest(_message.Message):
    __slots__ = ("idempotency_key", "name", "number", "reason")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    name: str
    number: int
    reason: str
    def __init__(self, idempotency_key: _Optional[str] = ..., name: _Optional[str] = ..., number: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ListReleasesRequest(_message.Message):
    __slots__ = ("name", "limit", "cursor")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    limit: int
    cursor: str
    def __init__(self, name: _Optional[str] = ..., limit: _Optional[int] = ..., cursor: _Optional[str] = ...) -> None: ...

class ReleasePage(_message.Message):
    __slots__ = ("clock", "releases", "next_cursor")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    NEXT_CURSOR_FIELD_NUMBER: _ClassVar[int]
    clock: float
    releases: _containers.RepeatedCompositeFieldContainer[Release]
    next_cursor: str
    def __init__(self, clock: _Optional[float] = ..., releases: _Optional[_Iterable[_Union[Release, _Mapping]]] = ..., next_cursor: _Optional[str] = ...) -> None: ...

class PutCandidatesRequest(_message.Message):
    __slots__ = ("idempotency_key", "name", "source", "licence", "candidates")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    name: str
    source: str
    licence: str
    candidates: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, idempotency_key: _Optional[str] = ..., name: _Optional[str] = ..., source: _Optional[str] = ..., licence: _Optional[str] = ..., candidates: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PutRatingsRequest(_message.Message):
    __slots__ = ("idempotency_key", "ratings")
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    RATINGS_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    ratings: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, idempotency_key: _Optional[str] = ..., ratings: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PreferencesKept(_message.Message):
    __slots__ = ("clock", "kept")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    clock: float
    kept: int
    def __init__(self, clock: _Optional[float] = ..., kept: _Optional[int] = ...) -> None: ...

class ListRatingsRequest(_message.Message):
    __slots__ = ("after", "limit")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    after: int
    limit: int
    def __init__(self, after: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class RatingPage(_message.Message):
    __slots__ = ("clock", "ratings", "last", "more")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    RATINGS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    clock: float
    ratings: _containers.RepeatedScalarFieldContainer[bytes]
    last: int
    more: bool
    def __init__(self, clock: _Optional[float] = ..., ratings: _Optional[_Iterable[bytes]] = ..., last: _Optional[int] = ..., more: _Optional[bool] = ...) -> None: ...

class GetLineageRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class Lineage(_message.Message):
    __slots__ = ("clock", "nodes", "edges")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    clock: float
    nodes: _containers.RepeatedCompositeFieldContainer[LineageNode]
    edges: _containers.RepeatedCompositeFieldContainer[LineageEdge]
    def __init__(self, clock: _Optional[float] = ..., nodes: _Optional[_Iterable[_Union[LineageNode, _Mapping]]] = ..., edges: _Optional[_Iterable[_Union[LineageEdge, _Mapping]]] = ...) -> None: ...

class LineageNode(_message.Message):
    __slots__ = ("id", "kind", "label", "status")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    label: str
    status: str
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., label: _Optional[str] = ..., status: _Optional[str] = ...) -> None: ...

class LineageEdge(_message.Message):
    __slots__ = ("to", "round")
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    to: str
    round: int
    def __init__(self, to: _Optional[str] = ..., round: _Optional[int] = ..., **kwargs) -> None: ...

class ListAuditRequest(_message.Message):
    __slots__ = ("before", "limit", "run_id", "event")
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    before: int
    limit: int
    run_id: str
    event: str
    def __init__(self, before: _Optional[int] = ..., limit: _Optional[int] = ..., run_id: _Optional[str] = ..., event: _Optional[str] = ...) -> None: ...

class AuditPage(_message.Message):
    __slots__ = ("clock", "entries", "more")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    clock: float
    entries: _containers.RepeatedCompositeFieldContainer[AuditLine]
    more: bool
    def __init__(self, clock: _Optional[float] = ..., entries: _Optional[_Iterable[_Union[AuditLine, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class AuditLine(_message.Message):
    __slots__ = ("number", "time", "body", "hash", "event", "run_id", "who")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    number: int
    time: float
    body: bytes
    hash: str
    event: str
    run_id: str
    who: str
    def __init__(self, number: _Optional[int] = ..., time: _Optional[float] = ..., body: _Optional[bytes] = ..., hash: _Optional[str] = ..., event: _Optional[str] = ..., run_id: _Optional[str] = ..., who: _Optional[str] = ...) -> None: ...

class VerifyAuditRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AuditVerdict(_message.Message):
    __slots__ = ("clock", "entries", "head", "sound", "trouble")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SOUND_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    clock: float
    entries: int
    head: str
    sound: bool
    trouble: str
    def __init__(self, clock: _Optional[float] = ..., entries: _Optional[int] = ..., head: _Optional[str] = ..., sound: _Optional[bool] = ..., trouble: _Optional[str] = ...) -> None: ...

class ExportAuditRequest(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: int
    def __init__(self, after: _Optional[int] = ...) -> None: ...

class AuditPart(_message.Message):
    __slots__ = ("clock", "chunk")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    clock: float
    chunk: bytes
    def __init__(self, clock: _Optional[float] = ..., chunk: _Optional[bytes] = ...) -> None: ...
