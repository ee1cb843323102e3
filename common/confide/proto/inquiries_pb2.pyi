from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListCardsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListCardsReply(_message.Message):
    __slots__ = ("cards",)
    CARDS_FIELD_NUMBER: _ClassVar[int]
    cards: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, cards: _Optional[_Iterable[bytes]] = ...) -> None: ...

class InquireRequest(_message.Message):
    __slots__ = ("inquiries", "deadline_s")
    INQUIRIES_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    inquiries: _containers.RepeatedCompositeFieldContainer[Addressed]
    deadline_s: int
    def __init__(self, inquiries: _Optional[_Iterable[_Union[Addressed, _Mapping]]] = ..., deadline_s: _Optional[int] = ...) -> None: ...

class Addressed(_message.Message):
    __slots__ = ("node", "sealed")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    node: str
    sealed: bytes
    def __init__(self, node: _Optional[str] = ..., sealed: _Optional[bytes] = ...) -> None: ...

class InquireReply(_message.Message):
    __slots__ = ("node", "sealed", "failure")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    node: str
    sealed: bytes
    failure: str
    def __init__(self, node: _Optional[str] = ..., sealed: _Optional[bytes] = ..., failure: _Optional[str] = ...) -> None: ...

class PublishCardRequest(_message.Message):
    __slots__ = ("card",)
    CARD_FIELD_NUMBER: _ClassVar[int]
    card: bytes
    def __init__(self, card: _Optional[bytes] = ...) -> None: ...

class PublishCardReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AwaitInquiriesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Delivery(_message.Message):
    __slots__ = ("delivery", "sealed")
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    delivery: str
    sealed: bytes
    def __init__(self, delivery: _Optional[str] = ..., sealed: _Optional[bytes] = ...) -> None: ...

class AnswerInquiryRequest(_message.Message):
    __slots__ = ("delivery", "sealed", "failure")
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    delivery: str
    sealed: bytes
    failure: str
    def __init__(self, delivery: _Optional[str] = ..., sealed: _Optional[bytes] = ..., failure: _Optional[str] = ...) -> None: ...

class AnswerInquiryReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
