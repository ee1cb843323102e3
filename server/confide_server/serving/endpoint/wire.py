"""Requests as OpenAI's clients send them. What this server does not do is refused by name, never ignored.

A field that changes nothing at its neutral value (n = 1, frequency_penalty = 0) is taken at that value. `user`,
`metadata` and `store = false` are taken and not used.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from confide_server.serving.failures import Refused

MAX_MESSAGES, MAX_INPUTS, MAX_N, MAX_STOPS, MAX_STOP_CHARS, MAX_TOP = 1024, 256, 16, 16, 256, 20
Count = Annotated[int, Field(ge=0, le=1 << 20)]
Text = Annotated[str, Field(max_length=1 << 22)]
# What is wrong in a list is said once: a body of nothing else would keep this process busy with listing it.
Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(max_length=1 << 20, fail_fast=True)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Collection = Annotated[str, Field(min_length=1, max_length=129)]
"""ORGANIZATION/COLLECTION, 64 characters each."""
Neutral = Annotated[float, Field(ge=0, le=0)]


class Body(BaseModel):
    """Base: unknown fields and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """A turn. `developer` is OpenAI's newer word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=256)]

    def plain(self) -> dict[str, str]:
        """As a chat template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Body):
    """include_usage: the last chunk says how many tokens it was.

    continuous_usage_stats (vLLM's): every chunk does, so that it is known also of a stream that is cut.
    """

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] | None = None


class NamedSchema(Body):
    """A JSON schema under a name."""

    name: Annotated[str, Field(max_length=64)]
    description: Annotated[str, Field(max_length=4096)] | None = None
    json_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Body):
    """text, json_object, or json_schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with type json_schema, and only with it")
        return self

    @property
    def schema_document(self) -> dict[str, Any] | None:
        """The schema to obey; None for plain text."""
        if self.type == "text":
            return None
        given = None if self.json_schema is None else self.json_schema.json_schema
        return {"type": "object"} if given is None else given


class Sampling(Body):
    """What chat and completions share."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    frequency_penalty: Neutral | None = None
    presence_penalty: Neutral | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None

    @model_validator(mode="after")
    def _streamed(self) -> "Sampling":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream = true, and only with it")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wants_usage_throughout(self) -> bool:
        """Whether each chunk says the usage until then."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_tokens: Annotated[Count, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Count, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    collections: Annotated[list[Collection], Field(min_length=1, max_length=16)] | None = None
    """Confide's own: answer from these collections of documents, with citations. An empty list is refused: left to the
    model, the answer would be words of no document."""

    @model_validator(mode="after")
    def _agree(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs = true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("give max_completion_tokens or max_tokens, not both")
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens to write."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        """How many alternatives beside each token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Sampling):
    """POST /v1/completions. Prompts are texts, or token ids."""

    prompt: Text | Tokens | Texts | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    max_tokens: Count | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt by itself."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(one, int) for one in self.prompt):
            return [self.prompt]  # type: ignore[list-item]  # one prompt of token ids
        return list(self.prompt)  # type: ignore[arg-type]  # the rest are whole prompts

    @model_validator(mode="after")
    def _bounded(self) -> "CompletionRequest":
        if len(self.prompts) * (self.n or 1) > MAX_INPUTS:
            raise ValueError(f"at most {MAX_INPUTS} texts are written for one request")
        return self


class EmbeddingRequest(Body):
    """POST /v1/embeddings."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: Text | Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None

    @property
    def texts(self) -> list[str]:
        """Each text by itself."""
        return [self.input] if isinstance(self.input, str) else list(self.input)


Any_ = TypeVar("Any_", bound=Body)


def parsed(kind: type[Any_], body: bytes) -> Any_:
    """The request in a body. Raises Refused, naming the field."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON object ({type(error).__name__})") from None


def _refusal(error: ValidationError) -> Refused:
    first = _telling(error.errors(include_url=False, include_context=False))
    place = ".".join(_place(first)) or None
    value = _shown(first.get("input"))
    if first["type"] == "json_invalid":
        return Refused(400, f"the body is no JSON: {first['msg']}")
    if first["type"] == "extra_forbidden":
        return Refused(
            400, f"{place!r} is not known to this server; leave it out", param=place, code="unknown_parameter"
        )
    if first["type"] == "missing":
        return Refused(400, f"{place!r} is missing", param=place, code="missing_required_parameter")
    said = f"{place or 'the request'}: {first['msg'].removeprefix('Value error, ')}"
    return Refused(400, f"{said}; got {value}" if place else said, param=place, code="invalid_value")


def _telling(errors: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first error; of a field with several forms the one of the form that was meant.

    That a list is no text says nothing to who sent a list: what is wrong in it does.
    """
    first, place = errors[0], _place(errors[0])
    if not first["type"].endswith("_type"):
        return first
    same = [one for one in errors if _place(one)[: len(place)] == place]
    return next((one for one in same if len(_place(one)) > len(place) or not one["type"].endswith("_type")), first)


def _place(error: Mapping[str, Any]) -> list[str]:
    return [str(part) for part in error["loc"] if not _is_type_name(part)]


def _is_type_name(part: object) -> bool:
    """pydantic names the alternatives of a union in the path; they are none of the request's fields."""
    return isinstance(part, str) and (("[" in part) or part in {"str", "TextPart", "constrained-str", "int", "float"})


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
