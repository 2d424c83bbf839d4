"""The answers of OpenAI's routes, in that API's form; `seed` and `receipt` besides."""

from typing import Any, Literal

import pydantic

FinishText = Literal["stop", "length"]


class PromptTokens(pydantic.BaseModel):
    """How many tokens of the prompt had been run for others before."""

    cached_tokens: int


class TokenUsage(pydantic.BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class TopToken(pydantic.BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ChatToken(TopToken):
    top_logprobs: list[TopToken]


class ChatLogprobs(pydantic.BaseModel):
    content: list[ChatToken]
    refusal: None


class AssistantMessage(pydantic.BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(pydantic.BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishText


class Answer(pydantic.BaseModel):
    """What every answer says about itself."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None


class ChatCompletion(Answer):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: TokenUsage
    seed: int | None
    receipt: dict[str, Any] | None = None


class Delta(pydantic.BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str = ""


class ChunkChoice(pydantic.BaseModel):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishText | None


class ChatCompletionChunk(Answer):
    """An event; `usage` and `receipt` are there if asked for, `seed` at the end."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]
    usage: TokenUsage | None = None
    seed: int | None = None
    receipt: dict[str, Any] | None = None


class TextLogprobs(pydantic.BaseModel):
    """An entry for every token; null where nothing stands before one."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(pydantic.BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishText | None


class Completion(Answer):
    """An answer or, streamed, an event of one."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: TokenUsage | None = None
    seed: int | None = None
    receipt: dict[str, Any] | None = None


class ServedModel(pydantic.BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ServedModels(pydantic.BaseModel):
    object: Literal["list"]
    data: list[ServedModel]
