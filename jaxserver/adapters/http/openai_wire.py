"""The bodies of OpenAI's two routes; field names are that API's, not ours.

A field is applied, or a label that changes nothing, or taken only when it asks for
nothing. Null is the same as leaving a field out.
"""

import abc
import dataclasses
import secrets
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

from jaxserver.adapters.http.body import invalid
from jaxserver.adapters.http.wire import (
    Choices,
    LogitsProcessors,
    No,
    Nothing,
    One,
    Penalty,
    Priority,
    Probability,
    RepetitionPenalty,
    Seconds,
    Seed,
    Stop,
    Temperature,
    TokenCount,
    TokenId,
    TopK,
    Whole,
    WireModel,
)
from jaxserver.ports.origin import Origin
from jaxserver.ports.types import (
    MAX_END_IDS,
    MAX_LOGIT_BIAS,
    MAX_TOP_LOGPROBS,
    GenerationRequest,
    Message,
    Role,
    SamplingParams,
)

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_IDS = pydantic.TypeAdapter(list[TokenId], config=WireModel.model_config)


class TextPart(WireModel):
    type: Literal["text"]
    text: str


_PARTS = pydantic.TypeAdapter(list[TextPart])


def _joined(content: Any) -> str:
    if isinstance(content, str):
        return content
    try:
        return "".join(part.text for part in _PARTS.validate_python(content))
    except pydantic.ValidationError:
        allowed = 'text, or a list of parts of type "text"'
        raise PydanticCustomError("content", f"allowed is {allowed}") from None


def _text_or_ids(prompt: Any) -> str | tuple[int, ...]:
    if isinstance(prompt, list) and len(prompt) == 1 and not _is_number(prompt[0]):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    try:
        ids = _IDS.validate_python(prompt)
    except pydantic.ValidationError:
        ids = []
    if not ids:
        allowed = "one text, or one list of token ids that is not empty"
        raise PydanticCustomError("prompt", f"allowed is {allowed}")
    return tuple(ids)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _only_with(field: str, other: str, given: dict[str, Any]) -> dict[str, Any]:
    """Describes that a field, where it is given, wants another one to be true."""
    return {
        "if": {"properties": {field: given}, "required": [field]},
        "then": {"properties": {other: {"const": True}}, "required": [other]},
    }


_ONE_WITH_RECEIPT: dict[str, Any] = {
    "if": {"properties": {"receipt": {"const": True}}, "required": ["receipt"]},
    "then": {"properties": {"n": {"maximum": 1}}},
}
_STREAMED = _only_with("stream_options", "stream", {"type": "object"})
_REPORTED = _only_with("top_logprobs", "logprobs", {"type": "integer", "minimum": 1})

Ids = Annotated[list[TokenId], Field(min_length=1)]
_Single = Field(min_length=1, max_length=1)
Content = Annotated[
    str, BeforeValidator(_joined, json_schema_input_type=str | list[TextPart])
]
Prompt = Annotated[
    str | tuple[int, ...],
    PlainValidator(
        _text_or_ids,
        json_schema_input_type=str
        | Annotated[list[str], _Single]
        | Ids
        | Annotated[list[Ids], _Single],
    ),
]
IdText = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
LogitBias = Annotated[
    dict[IdText, Penalty],
    Field(max_length=MAX_LOGIT_BIAS, json_schema_extra={"additionalProperties": False}),
]
EndIds = Annotated[list[TokenId], Field(max_length=MAX_END_IDS)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), Whole]


class ChatMessage(WireModel):
    """One message; what only tools and sound need may be there, but empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing | None = None
    annotations: Nothing | None = None

    def to_message(self) -> Message:
        return Message(role=_ROLES[self.role], content=self.content)


class StreamOptions(WireModel):
    include_usage: bool | None = None
    include_obfuscation: No | None = None


class TextFormat(WireModel):
    type: Literal["text"]


class OpenAIBody(WireModel):
    """What both routes take."""

    model_config = pydantic.ConfigDict(
        json_schema_extra={"allOf": [_STREAMED, _ONE_WITH_RECEIPT]}
    )

    model: str | None = None
    max_tokens: TokenCount | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: TopK | None = None
    min_p: Probability | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stop_token_ids: EndIds | None = None
    ignore_eos: bool | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: LogitBias | None = None
    logits_processors: LogitsProcessors | None = None
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Priority | None = None
    deadline_seconds: Seconds | None = None
    receipt: bool | None = None

    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    best_of: One | None = None
    store: No | None = None
    service_tier: Literal["auto", "default"] | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self) -> None:
        """Refuses fields that only mean something together with others.

        Raises:
            Refused: One is there without what it needs.
        """
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "allowed only with stream: true")
        if self.receipt and (self.n or 1) > 1:
            raise invalid("receipt", "allowed is false with several answers, by n")

    @abc.abstractmethod
    def sampling_params(self) -> SamplingParams:
        """How tokens are to be chosen."""

    @property
    def scores_prompt(self) -> bool:
        """The log-probabilities of the prompt's own tokens are wanted."""
        return False

    def to_requests(
        self, prompt: str | tuple[int, ...], origin: Origin
    ) -> tuple[GenerationRequest, ...]:
        """The requests for a prompt that is written out, one for each choice.

        All draw with one seed, each in its own way.
        """
        sampling, count = self.sampling_params(), self.n or 1
        if count > 1 and sampling.seed is None:
            seed = secrets.randbits(64)
            sampling = dataclasses.replace(sampling, seed=seed)
        first = GenerationRequest(
            prompt=prompt,
            sampling=sampling,
            streaming=bool(self.stream),
            score_prompt=self.scores_prompt,
            priority=self.priority or 0,
            deadline_seconds=self.deadline_seconds,
            receipt=bool(self.receipt),
            origin=origin,
        )
        return tuple(dataclasses.replace(first, choice=nth) for nth in range(count))

    def _sampling(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "seed": self.seed,
            "stop": self.stop,
            "stop_token_ids": self.stop_token_ids,
            "ignore_eos": self.ignore_eos,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "max_new_tokens": max_tokens,
            "logprobs": logprobs,
            "logits_processors": self.logits_processors,
        }
        bias = {int(token): value for token, value in (self.logit_bias or {}).items()}
        named: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        return SamplingParams(**named, logit_bias=bias)


class ChatCompletionBody(OpenAIBody):
    """A conversation whose next turn is wanted."""

    model_config = pydantic.ConfigDict(
        json_schema_extra={"allOf": [_STREAMED, _ONE_WITH_RECEIPT, _REPORTED]}
    )

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None

    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Nothing | None = None
    function_call: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], _Single] | None = None
    audio: None = None
    prediction: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None
    moderation: None = None
    prompt_cache_options: None = None
    prompt_cache_retention: None = None

    def check(self) -> None:
        super().check()
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            raise invalid("max_tokens", "allowed is to equal max_completion_tokens")
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", "allowed only with logprobs: true")

    def conversation(self) -> list[Message]:
        return [message.to_message() for message in self.messages]

    def sampling_params(self) -> SamplingParams:
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self._sampling(self.max_completion_tokens or self.max_tokens, logprobs)


class CompletionBody(OpenAIBody):
    """A text, or its token ids, whose continuation is wanted."""

    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, lt=2**31), Whole] | None = None
    logprobs: TopLogprobs | None = None
    echo: bool | None = None

    suffix: None = None

    @property
    def scores_prompt(self) -> bool:
        return bool(self.echo) and self.logprobs is not None

    def sampling_params(self) -> SamplingParams:
        return self._sampling(self.max_tokens, self.logprobs)
