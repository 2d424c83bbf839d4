"""From a request's prompt to token ids that fit."""

from typing import NamedTuple

from jaxserver.adapters.engine.requests import Limits
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import InvalidRequest, PromptTooLong
from jaxserver.ports.prompt import Rendered
from jaxserver.ports.tokenizer import Tokenizer
from jaxserver.ports.types import GenerationRequest


class Prompt(NamedTuple):
    """Token ids, and how many of the original ones were left out."""

    ids: tuple[int, ...]
    dropped: int


def read_prompt(
    request: GenerationRequest,
    tokenizer: Tokenizer,
    config: ServerConfig,
    limits: Limits,
) -> Prompt:
    """Tokenises, checks, and cuts where the request allows it.

    Raises:
        InvalidRequest: There is no token, an id outside the vocabulary, or something
            asked for that this model has not got.
        PromptTooLong: The prompt leaves no room for an answer.
    """
    _check_vocabulary(request, tokenizer.vocab_size)
    _check_processors(request, limits)
    if request.score_prompt and not limits.can_score:
        allowed = "false for this model, whose bits depend on how a token was run"
        raise InvalidRequest("score_prompt", "True", allowed)
    ids = _tokenise(request, tokenizer)
    if not ids:
        raise InvalidRequest("prompt", "no token", "at least one token")
    least = 0 if request.sampling.max_new_tokens == 0 else 1
    room = limits.max_input or limits.max_len - least
    if request.truncate:
        left = limits.max_input or limits.max_len - config.max_stream_tokens
        return _cut(ids, request, tokenizer, max(1, left))
    if len(ids) > room:
        raise PromptTooLong(len(ids), room)
    return Prompt(ids, 0)


def _check_vocabulary(request: GenerationRequest, vocab_size: int) -> None:
    prompt = () if isinstance(request.prompt, str) else request.prompt
    fields = {
        "prompt": prompt,
        "stop_token_ids": request.sampling.stop_token_ids,
        "logit_bias": tuple(request.sampling.logit_bias),
    }
    for field, ids in fields.items():
        for token in ids:
            if not 0 <= token < vocab_size:
                allowed = f"token ids from 0 to {vocab_size - 1}"
                raise InvalidRequest(field, str(token), allowed)


def _check_processors(request: GenerationRequest, limits: Limits) -> None:
    field = "logits_processors"
    for name, params in request.sampling.logits_processors.items():
        if name not in limits.processors:
            known = ", ".join(sorted(limits.processors)) or "none: there are none"
            raise InvalidRequest(field, name, known)
        defaults = limits.processors[name].params
        for key, value in params.items():
            if key not in defaults:
                known = ", ".join(sorted(defaults)) or "no parameter"
                raise InvalidRequest(field, f"{name}: {key}", known)
            if type(value) is not type(defaults[key]) and not (
                isinstance(defaults[key], float) and type(value) is int
            ):
                kind = type(defaults[key]).__name__
                raise InvalidRequest(field, f"{name}: {key}: {value!r}", f"a {kind}")


def _tokenise(request: GenerationRequest, tokenizer: Tokenizer) -> tuple[int, ...]:
    if not isinstance(request.prompt, str):
        return tuple(request.prompt)
    with_special = not isinstance(request.prompt, Rendered)
    return tuple(tokenizer.encode(request.prompt, add_special_tokens=with_special))


def _cut(
    ids: tuple[int, ...], request: GenerationRequest, tokenizer: Tokenizer, room: int
) -> Prompt:
    """Keeps the beginning-of-text token, the system turn and the last tokens."""
    if len(ids) <= room:
        return Prompt(ids, 0)
    head: tuple[int, ...] = ()
    if isinstance(request.prompt, Rendered):
        kept = request.prompt.kept_prefix()
        head = tuple(tokenizer.encode(kept, add_special_tokens=False))
    if head[:1] != ids[:1] and ids[0] == tokenizer.bos_id:
        head = (ids[0], *head)
    if len(head) >= room:
        raise PromptTooLong(len(ids), room)
    return Prompt((*head, *ids[len(ids) - room + len(head) :]), len(ids) - room)
