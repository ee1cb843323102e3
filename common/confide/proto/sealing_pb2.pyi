from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SecretKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SECRET_KIND_UNSPECIFIED: _ClassVar[SecretKind]
    SELF_MASK: _ClassVar[SecretKind]
    MASK_SECRET: _ClassVar[SecretKind]
SECRET_KIND_UNSPECIFIED: SecretKind
SELF_MASK: SecretKind
MASK_SECRET: SecretKind

class PlainUpload(_message.Message):
    __slots__ = ("version", "slot", "upload_digest", "weight", "metrics")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    version: int
    slot: int
    upload_digest: bytes
    weight: float
    metrics: _containers.RepeatedCompositeFieldContainer[MetricValue]
    def __init__(self, version: _Optional[int] = ..., slot: _Optional[int] = ..., upload_digest: _Optional[bytes] = ..., weight: _Optional[float] = ..., metrics: _Optional[_Iterable[_Union[MetricValue, _Mapping]]] = ...) -> None: ...

class MetricValue(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class AdvertiseRequest(_message.Message):
    __slots__ = ("version", "run_id", "epoch", "first_slot", "slots", "specification_sha256", "roster_version", "roster_sha256")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_SLOT_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SPECIFICATION_SHA256_FIELD_NUMBER: _ClassVar[int]
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROSTER_SHA256_FIELD_NUMBER: _ClassVar[int]
    version: int
    run_id: str
    epoch: int
    first_slot: int
    slots: int
    specification_sha256: bytes
    roster_version: int
    roster_sha256: bytes
    def __init__(self, version: _Optional[int] = ..., run_id: _Optional[str] = ..., epoch: _Optional[int] = ..., first_slot: _Optional[int] = ..., slots: _Optional[int] = ..., specification_sha256: _Optional[bytes] = ..., roster_version: _Optional[int] = ..., roster_sha256: _Optional[bytes] = ...) -> None: ...

class Bundle(_message.Message):
    __slots__ = ("version", "run_id", "epoch", "node", "first_slot", "share_key", "mask_keys", "seed_commitments", "incarnation", "ledger_length", "ledger_head", "specification_sha256", "roster_version", "roster_sha256", "ledger_signature")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    FIRST_SLOT_FIELD_NUMBER: _ClassVar[int]
    SHARE_KEY_FIELD_NUMBER: _ClassVar[int]
    MASK_KEYS_FIELD_NUMBER: _ClassVar[int]
    SEED_COMMITMENTS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LEDGER_LENGTH_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    SPECIFICATION_SHA256_FIELD_NUMBER: _ClassVar[int]
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROSTER_SHA256_FIELD_NUMBER: _ClassVar[int]
    LEDGER_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    version: int
    run_id: str
    epoch: int
    node: str
    first_slot: int
    share_key: bytes
    mask_keys: _containers.RepeatedScalarFieldContainer[bytes]
    seed_commitments: _containers.RepeatedScalarFieldContainer[bytes]
    incarnation: bytes
    ledger_length: int
    ledger_head: bytes
    specification_sha256: bytes
    roster_version: int
    roster_sha256: bytes
    ledger_signature: bytes
    def __init__(self, version: _Optional[int] = ..., run_id: _Optional[str] = ..., epoch: _Optional[int] = ..., node: _Optional[str] = ..., first_slot: _Optional[int] = ..., share_key: _Optional[bytes] = ..., mask_keys: _Optional[_Iterable[bytes]] = ..., seed_commitments: _Optional[_Iterable[bytes]] = ..., incarnation: _Optional[bytes] = ..., ledger_length: _Optional[int] = ..., ledger_head: _Optional[bytes] = ..., specification_sha256: _Optional[bytes] = ..., roster_version: _Optional[int] = ..., roster_sha256: _Optional[bytes] = ..., ledger_signature: _Optional[bytes] = ...) -> None: ...

class SignedBundle(_message.Message):
    __slots__ = ("bundle", "signature")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    bundle: bytes
    signature: bytes
    def __init__(self, bundle: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ShareRequest(_message.Message):
    __slots__ = ("version", "run_id", "epoch", "bundles")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    version: int
    run_id: str
    epoch: int
    bundles: _containers.RepeatedCompositeFieldContainer[SignedBundle]
    def __init__(self, version: _Optional[int] = ..., run_id: _Optional[str] = ..., epoch: _Optional[int] = ..., bundles: _Optional[_Iterable[_Union[SignedBundle, _Mapping]]] = ...) -> None: ...

class ShareReply(_message.Message):
    __slots__ = ("version", "epoch", "dealings")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DEALINGS_FIELD_NUMBER: _ClassVar[int]
    version: int
    epoch: int
    dealings: _containers.RepeatedCompositeFieldContainer[Dealing]
    def __init__(self, version: _Optional[int] = ..., epoch: _Optional[int] = ..., dealings: _Optional[_Iterable[_Union[Dealing, _Mapping]]] = ...) -> None: ...

class Dealing(_message.Message):
    __slots__ = ("dealer", "receiver", "ciphertext")
    DEALER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    dealer: str
    receiver: str
    ciphertext: bytes
    def __init__(self, dealer: _Optional[str] = ..., receiver: _Optional[str] = ..., ciphertext: _Optional[bytes] = ...) -> None: ...

class DealtShares(_message.Message):
    __slots__ = ("self_mask", "mask_secret", "ledger_length", "ledger_head", "ledger_signature", "earlier")
    SELF_MASK_FIELD_NUMBER: _ClassVar[int]
    MASK_SECRET_FIELD_NUMBER: _ClassVar[int]
    LEDGER_LENGTH_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    LEDGER_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    EARLIER_FIELD_NUMBER: _ClassVar[int]
    self_mask: _containers.RepeatedCompositeFieldContainer[DealtShare]
    mask_secret: _containers.RepeatedCompositeFieldContainer[DealtShare]
    ledger_length: int
    ledger_head: bytes
    ledger_signature: bytes
    earlier: _containers.RepeatedCompositeFieldContainer[LedgerClaim]
    def __init__(self, self_mask: _Optional[_Iterable[_Union[DealtShare, _Mapping]]] = ..., mask_secret: _Optional[_Iterable[_Union[DealtShare, _Mapping]]] = ..., ledger_length: _Optional[int] = ..., ledger_head: _Optional[bytes] = ..., ledger_signature: _Optional[bytes] = ..., earlier: _Optional[_Iterable[_Union[LedgerClaim, _Mapping]]] = ...) -> None: ...

class LedgerClaim(_message.Message):
    __slots__ = ("length", "head", "signature")
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    length: int
    head: bytes
    signature: bytes
    def __init__(self, length: _Optional[int] = ..., head: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class DealtShare(_message.Message):
    __slots__ = ("share", "signature")
    SHARE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    share: bytes
    signature: bytes
    def __init__(self, share: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SealedOpen(_message.Message):
    __slots__ = ("slot", "round", "attempt", "model_sha256", "parent_model_sha256", "evaluate_only", "version", "run_id", "epoch", "cohort", "dealings")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    PARENT_MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    DEALINGS_FIELD_NUMBER: _ClassVar[int]
    slot: int
    round: int
    attempt: int
    model_sha256: bytes
    parent_model_sha256: bytes
    evaluate_only: bool
    version: int
    run_id: str
    epoch: int
    cohort: _containers.RepeatedScalarFieldContainer[str]
    dealings: _containers.RepeatedCompositeFieldContainer[Dealing]
    def __init__(self, slot: _Optional[int] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., model_sha256: _Optional[bytes] = ..., parent_model_sha256: _Optional[bytes] = ..., evaluate_only: _Optional[bool] = ..., version: _Optional[int] = ..., run_id: _Optional[str] = ..., epoch: _Optional[int] = ..., cohort: _Optional[_Iterable[str]] = ..., dealings: _Optional[_Iterable[_Union[Dealing, _Mapping]]] = ...) -> None: ...

class SealedUpload(_message.Message):
    __slots__ = ("version", "slot", "context", "upload_digest")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    version: int
    slot: int
    context: bytes
    upload_digest: bytes
    def __init__(self, version: _Optional[int] = ..., slot: _Optional[int] = ..., context: _Optional[bytes] = ..., upload_digest: _Optional[bytes] = ...) -> None: ...

class Survivor(_message.Message):
    __slots__ = ("node", "upload_digest")
    NODE_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    node: str
    upload_digest: bytes
    def __init__(self, node: _Optional[str] = ..., upload_digest: _Optional[bytes] = ...) -> None: ...

class ConfirmRequest(_message.Message):
    __slots__ = ("version", "slot", "context", "survivors")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    version: int
    slot: int
    context: bytes
    survivors: _containers.RepeatedCompositeFieldContainer[Survivor]
    def __init__(self, version: _Optional[int] = ..., slot: _Optional[int] = ..., context: _Optional[bytes] = ..., survivors: _Optional[_Iterable[_Union[Survivor, _Mapping]]] = ...) -> None: ...

class Confirmation(_message.Message):
    __slots__ = ("version", "slot", "node", "anchored", "signature")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    ANCHORED_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    version: int
    slot: int
    node: str
    anchored: bool
    signature: bytes
    def __init__(self, version: _Optional[int] = ..., slot: _Optional[int] = ..., node: _Optional[str] = ..., anchored: _Optional[bool] = ..., signature: _Optional[bytes] = ...) -> None: ...

class RevealRequest(_message.Message):
    __slots__ = ("version", "slot", "context", "survivors", "confirmations", "self_masks", "mask_secrets")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    CONFIRMATIONS_FIELD_NUMBER: _ClassVar[int]
    SELF_MASKS_FIELD_NUMBER: _ClassVar[int]
    MASK_SECRETS_FIELD_NUMBER: _ClassVar[int]
    version: int
    slot: int
    context: bytes
    survivors: _containers.RepeatedCompositeFieldContainer[Survivor]
    confirmations: _containers.RepeatedCompositeFieldContainer[Confirmation]
    self_masks: _containers.RepeatedScalarFieldContainer[str]
    mask_secrets: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[int] = ..., slot: _Optional[int] = ..., context: _Optional[bytes] = ..., survivors: _Optional[_Iterable[_Union[Survivor, _Mapping]]] = ..., confirmations: _Optional[_Iterable[_Union[Confirmation, _Mapping]]] = ..., self_masks: _Optional[_Iterable[str]] = ..., mask_secrets: _Optional[_Iterable[str]] = ...) -> None: ...

class Reveal(_message.Message):
    __slots__ = ("version", "slot", "shares")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    version: int
    slot: int
    shares: _containers.RepeatedCompositeFieldContainer[RevealedShare]
    def __init__(self, version: _Optional[int] = ..., slot: _Optional[int] = ..., shares: _Optional[_Iterable[_Union[RevealedShare, _Mapping]]] = ...) -> None: ...

class RevealedShare(_message.Message):
    __slots__ = ("dealer", "kind", "share", "signature")
    DEALER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    dealer: str
    kind: SecretKind
    share: bytes
    signature: bytes
    def __init__(self, dealer: _Optional[str] = ..., kind: _Optional[_Union[SecretKind, str]] = ..., share: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...
