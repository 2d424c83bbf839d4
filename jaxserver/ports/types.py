"""The values a caller and the engine exchange."""

import dataclasses
import enum
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from jaxserver.ports.errors import InvalidRequest
from jaxserver.ports.origin import UNKNOWN, Origin

if TYPE_CHECKING:
    from jaxserver.ports.receipt import Receipt

MAX_SEED = 2**64 - 1
MAX_STOP_STRINGS = 16
MAX_END_IDS = 16
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 20
MAX_PRIORITY = 1000
MAX_CHOICES = 128
MAX_PROCESSORS = 16
MAX_DEADLINE_SECONDS = 86_400

Role = Literal["system", "user", "assistant"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


class FinishReason(enum.Enum):
    """Why an answer ended."""

    STOP = "stop"  # an end token was drawn or a stop string was written
    LENGTH = "length"  # `max_new_tokens` or `max_length` was reached
    CANCELLED = "cancelled"  # the stream was cancelled


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request wants its tokens chosen.

    None means "as the server is configured". The order of the steps is: logit bias,
    penalties, logits processors, temperature, top-k, top-p, min-p, draw.

    Attributes:
        greedy: Take the likeliest token, as temperature 0 and `top_k` 1 do.
        temperature: 0 or more.
        top_k: Keep this many tokens; 0 keeps all.
        top_p: Keep the smallest set, of those `top_k` left, that reaches this
            probability; 1 keeps all.
        min_p: Drop tokens less likely than this times the likeliest; 0 keeps all.
        repetition_penalty: Divides positive and multiplies negative logits of tokens of
            the prompt and the answer (Keskar et al. 2019, CTRL); 1 is off.
        presence_penalty: Subtracted from the logit of every token of the answer.
        frequency_penalty: Subtracted once for every time the token was answered.
        logit_bias: Added to the logits of single token ids.
        logits_processors: Names of steps that the server has been given, each with the
            parameters that differ from their defaults.
        seed: Fixes the draws; None lets the server choose one and report it.
        max_new_tokens: Most tokens to draw, the end token included; 0 draws none.
        stop: Strings that end the answer; they are not part of it.
        stop_token_ids: Ids that end the answer, besides the model's own.
        ignore_eos: Do not end at the model's own end tokens.
        logprobs: How many of the likeliest tokens to report with each drawn one; None
            reports no log-probabilities at all, 0 that of the drawn token alone.
    """

    greedy: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    logits_processors: Mapping[str, Mapping[str, float]] = dataclasses.field(
        default_factory=dict
    )
    seed: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high, integer) in _RANGES.items():
            _check_number(name, getattr(self, name), low, high, integer=integer)
        _check_stop(self.stop)
        _check_end_ids(self.stop_token_ids)
        _check_logit_bias(self.logit_bias)
        for name, kind in (("stop", tuple), ("stop_token_ids", tuple)):
            object.__setattr__(self, name, kind(getattr(self, name)))
        bias = MappingProxyType(dict(self.logit_bias))
        object.__setattr__(self, "logit_bias", bias)
        _check_processors(self.logits_processors)
        asked = {
            k: MappingProxyType(dict(v)) for k, v in self.logits_processors.items()
        }
        object.__setattr__(self, "logits_processors", MappingProxyType(asked))

    def __reduce__(self) -> tuple[object, ...]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        asked = {name: dict(given) for name, given in self.logits_processors.items()}
        plain = {"logit_bias": dict(self.logit_bias), "logits_processors": asked}
        return _sampling_params, ({**fields, **plain},)


def _sampling_params(fields: dict[str, object]) -> SamplingParams:
    return SamplingParams(**fields)  # type: ignore[arg-type]  # pickled fields


_RANGES: dict[str, tuple[float, float, bool]] = {
    "temperature": (0, 100, False),
    "top_k": (0, 2**31 - 1, True),
    "top_p": (0, 1, False),
    "min_p": (0, 1, False),
    "repetition_penalty": (0.01, 100, False),
    "presence_penalty": (-100, 100, False),
    "frequency_penalty": (-100, 100, False),
    "seed": (0, MAX_SEED, True),
    "max_new_tokens": (0, 2**31 - 1, True),
    "logprobs": (0, MAX_TOP_LOGPROBS, True),
}
_OPTIONAL = {"temperature", "top_k", "top_p", "seed", "max_new_tokens", "logprobs"}


def _check_number(
    name: str, value: object, low: float, high: float, *, integer: bool
) -> None:
    if value is None and name in _OPTIONAL:
        return
    kinds: tuple[type, ...] = (int,) if integer else (int, float)
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    if not (fits and low <= value <= high):  # type: ignore[operator]  # fits says number
        kind = "an integer" if integer else "a number"
        raise InvalidRequest(name, _short(value), f"{kind} from {low} to {high}")


def _check_stop(stop: object) -> None:
    allowed = f"at most {MAX_STOP_STRINGS} strings, none of them empty"
    if isinstance(stop, str) or not isinstance(stop, tuple | list):
        raise InvalidRequest("stop", _short(stop), allowed)
    if len(stop) > MAX_STOP_STRINGS:
        raise InvalidRequest("stop", f"{len(stop)} strings", allowed)
    for text in stop:
        if not isinstance(text, str) or not text:
            raise InvalidRequest("stop", _short(text), allowed)


def _check_end_ids(ids: object) -> None:
    allowed = f"at most {MAX_END_IDS} token ids"
    if not isinstance(ids, tuple | list):
        raise InvalidRequest("stop_token_ids", _short(ids), allowed)
    if len(ids) > MAX_END_IDS:
        raise InvalidRequest("stop_token_ids", f"{len(ids)} ids", allowed)
    for token in ids:
        if not _is_id(token):
            raise InvalidRequest("stop_token_ids", _short(token), allowed)


def _check_logit_bias(bias: object) -> None:
    allowed = f"at most {MAX_LOGIT_BIAS} token ids, each with a number from -100 to 100"
    if not isinstance(bias, Mapping):
        raise InvalidRequest("logit_bias", _short(bias), allowed)
    if len(bias) > MAX_LOGIT_BIAS:
        raise InvalidRequest("logit_bias", f"{len(bias)} entries", allowed)
    for token, value in bias.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = is_number and math.isfinite(value) and abs(value) <= 100
        if not _is_id(token) or not fits:
            got = f"{_short(token)}: {_short(value)}"
            raise InvalidRequest("logit_bias", got, allowed)


def _check_processors(asked: object) -> None:
    allowed = f"at most {MAX_PROCESSORS} names, each with parameters that are numbers"
    if not isinstance(asked, Mapping) or len(asked) > MAX_PROCESSORS:
        raise InvalidRequest("logits_processors", _short(asked), allowed)
    for name, params in asked.items():
        is_named = isinstance(name, str) and isinstance(params, Mapping)
        if not is_named or not all(_is_finite(value) for value in params.values()):
            got = f"{_short(name)}: {_short(params)}"
            raise InvalidRequest("logits_processors", got, allowed)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= 2**31 - 1


def _is_id(token: object) -> bool:
    is_int = isinstance(token, int) and not isinstance(token, bool)
    return is_int and 0 <= token < 2**31  # type: ignore[operator]  # is_int says so


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt and what to do with it.

    Attributes:
        prompt: Text, or token ids that are taken as they are. Text that is not
            `Rendered` gets the special tokens that the tokenizer's settings add, but
            never a second beginning-of-text token.
        sampling: How tokens are chosen.
        truncate: A prompt over `max_length - max_stream_tokens` keeps its beginning-of-
            text token, its last tokens and, where it is `Rendered`, its system turn,
            instead of being refused.
        streaming: Somebody reads the chunks as they come, so they should come often.
        score_prompt: The log-probabilities of the prompt's own tokens are wanted, as
            `sampling.logprobs` says; with `max_new_tokens` 0 nothing else is.
        choice: Which of several answers to one prompt and seed this is; each has draws
            of its own.
        priority: Requests with a lower one get their slots sooner.
        deadline_seconds: An answer that is not finished so long after it was asked for
            is an error instead.
        receipt: The last chunk is to have one.
        origin: Who asked; requests that differ in it alone are equal.

    What says when an answer is made, or for whom, never changes it.

    Raises:
        InvalidRequest: A number is not one of those allowed.
    """

    prompt: str | tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    truncate: bool = False
    streaming: bool = True
    score_prompt: bool = False
    choice: int = 0
    priority: int = 0
    deadline_seconds: float | None = None
    receipt: bool = False
    origin: Origin = dataclasses.field(default=UNKNOWN, compare=False)

    def __post_init__(self) -> None:
        low, high = -MAX_PRIORITY, MAX_PRIORITY
        _check_number("priority", self.priority, low, high, integer=True)
        _check_number("choice", self.choice, 0, MAX_CHOICES - 1, integer=True)
        if self.score_prompt and self.sampling.logprobs is None:
            allowed = "false, or true together with logprobs"
            raise InvalidRequest("score_prompt", "True", allowed)
        if self.deadline_seconds is not None:
            seconds, most = self.deadline_seconds, MAX_DEADLINE_SECONDS
            _check_number("deadline_seconds", seconds, 0, most, integer=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A drawn token's log-probability, before any of the sampling steps.

    Attributes:
        token_bytes: What the token adds to the text; empty for special tokens.
        logprob: Natural logarithm, a float32 value.
        top: The likeliest tokens in its place, best first, themselves without `top`.
    """

    token_id: int
    token_bytes: bytes
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Counts of tokens.

    Attributes:
        completion_tokens: Tokens drawn so far, the end token included.
        prompt_tokens_dropped: Tokens of the prompt that truncation left out; they are
            not part of `prompt_tokens`.
        cached_tokens: Tokens of the prompt that had been run for others before; how an
            answer was made is no part of it, so this is not compared.
    """

    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_dropped: int = 0
    cached_tokens: int = dataclasses.field(default=0, compare=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of an answer.

    The text of the chunks together is the answer; text may come later than the tokens
    it was made of, while it is unfinished or could become a stop string.

    Attributes:
        logprobs: One entry per token id where the request asked, else None.
        prompt_logprobs: In the first chunk, where the request asked: one entry per
            token of the prompt but the first, which nothing stands before.
        finish_reason: In the last chunk, and only there.
        seed: The seed that was used, in the last chunk, and only there.
        receipt: In the last chunk, where the request asked for one and the answer was
            not cancelled.
    """

    text: str
    token_ids: tuple[int, ...]
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    seed: int | None = None
    receipt: "Receipt | None" = None
