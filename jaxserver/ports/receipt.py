"""What an answer depends on, written down so that it can be made again."""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from jaxserver.ports.errors import InvalidRequest
from jaxserver.ports.types import GenerationRequest, SamplingParams, TokenLogprob

CONFIG_KEYS = (
    *("dtype", "quantize", "numerics", "backend", "slots", "max_length", "batch_size"),
    *("max_stream_tokens", "mesh_axes_shape", "page_size", "num_pages"),
    *("prefix_cache", "num_processes", "kernels"),
)
"""Those of the configuration that say how a model is run, and not where or for whom."""
IDENTITY_FIELDS = (
    *("model", "weights", "settings", "tokenizer", "template", "config", "versions"),
)
_FIELDS = (*IDENTITY_FIELDS, "prompt_ids", "sampling", "answer")
_SAMPLING = tuple(field.name for field in dataclasses.fields(SamplingParams))
_REQUEST = ("choice", "score_prompt")
"""What else in a request decides about its answer."""
_CHOSEN = ("temperature", "top_k", "top_p", "seed", "max_new_tokens")
"""What a request may leave to the server, and a receipt may not."""


class Digests(NamedTuple):
    """SHA-256, in hexadecimal digits, of what a model is made of.

    Attributes:
        weights: Of its one file, or of the lines `sha256sum` prints for several; of
            parameters in memory, of every leaf's path, type, shape and bytes.
        settings: Likewise of `config.json`, and of `generation_config.json` where there
            is one; None where the weights' file holds them.
        tokenizer: Of all that decides which ids a text has.
        template: Of the chat template's text; None where there is none.
    """

    weights: str
    settings: str | None
    tokenizer: str
    template: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """All that an answer depends on besides its request.

    Attributes:
        model: The name it is served under, which may say less than the digests.
        weights: As `Digests` has it.
        settings: Likewise.
        tokenizer: Likewise.
        template: Likewise, with whatever the user writes prompts with instead.
        config: The values of `CONFIG_KEYS`.
        versions: Of the libraries, of Python, and the kind of device.
    """

    model: str
    weights: str
    settings: str | None
    tokenizer: str
    template: str | None
    config: Mapping[str, object]
    versions: Mapping[str, str]

    def fingerprint(self) -> str:
        """Its short form, which two that differ in anything do not share."""
        whole = json.dumps(self.to_json(), sort_keys=True).encode()
        return f"fp_{hashlib.sha256(whole).hexdigest()[:16]}"

    def to_json(self) -> dict[str, Any]:
        config = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in self.config.items()
        }
        values = {name: getattr(self, name) for name in IDENTITY_FIELDS}
        return {**values, "config": config, "versions": dict(self.versions)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was answered.

    Attributes:
        ids: The tokens drawn, the one that ended the answer included.
        digest: SHA-256 of the ids, each in four bytes, the lowest first.
        logprobs: SHA-256 of the log-probabilities, where they were asked for: of each
            token, and of the likeliest in its place, the id as above and the bits of
            the float32 as four bytes.
        prompt_logprobs: Likewise those of the prompt's own tokens.
    """

    ids: tuple[int, ...]
    digest: str
    logprobs: str | None = None
    prompt_logprobs: str | None = None

    @classmethod
    def of(
        cls,
        ids: Sequence[int],
        logprobs: Sequence[TokenLogprob] | None = None,
        prompt_logprobs: Sequence[TokenLogprob] | None = None,
    ) -> Self:
        packed = struct.pack(f"<{len(ids)}I", *ids)
        return cls(
            ids=tuple(ids),
            digest=hashlib.sha256(packed).hexdigest(),
            logprobs=_logprobs_digest(logprobs),
            prompt_logprobs=_logprobs_digest(prompt_logprobs),
        )

    def to_json(self) -> dict[str, Any]:
        fields = {**dataclasses.asdict(self), "ids": list(self.ids)}
        return {name: value for name, value in fields.items() if value is not None}


def _logprobs_digest(entries: Sequence[TokenLogprob] | None) -> str | None:
    if entries is None:
        return None
    made = hashlib.sha256()
    for entry in entries:
        for token in (entry, *entry.top):
            made.update(struct.pack("<If", token.token_id, token.logprob))
    return made.hexdigest()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """An answer with all that it depends on.

    Attributes:
        request: As it was run: the prompt in ids, after a cut, and nothing left to the
            server. Asked again it has to bring the same answer.
        end_ids: The tokens that ended it, the model's own included.
    """

    identity: Identity
    request: GenerationRequest
    end_ids: tuple[int, ...]
    answer: Outcome

    def to_json(self) -> dict[str, Any]:
        """One object of plain values, which `json` writes without loss."""
        sampling = self.request.sampling
        values = {name: getattr(sampling, name) for name in _SAMPLING}
        processors = sampling.logits_processors
        plain = {
            "logit_bias": {str(token): x for token, x in sampling.logit_bias.items()},
            "logits_processors": {name: dict(x) for name, x in processors.items()},
            "stop": list(sampling.stop),
            "stop_token_ids": list(sampling.stop_token_ids),
        }
        more = {name: getattr(self.request, name) for name in _REQUEST}
        return {
            **self.identity.to_json(),
            "prompt_ids": list(self.request.prompt),
            "sampling": {**values, **plain, **more, "end_ids": list(self.end_ids)},
            "answer": self.answer.to_json(),
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The receipt that an object is.

        Raises:
            InvalidRequest: It is none; names the field that is missing, unknown or
                wrong.
        """
        fields = _object("receipt", value, _FIELDS, _FIELDS)
        identity = Identity(
            model=_text("model", fields["model"]),
            weights=_text("weights", fields["weights"]),
            settings=_text_or_none("settings", fields["settings"]),
            tokenizer=_text("tokenizer", fields["tokenizer"]),
            template=_text_or_none("template", fields["template"]),
            config=_config(fields["config"]),
            versions=_versions(fields["versions"]),
        )
        prompt_ids = _ids("prompt_ids", fields["prompt_ids"])
        request, end_ids = _request(prompt_ids, fields["sampling"])
        outcome = _outcome(fields["answer"])
        return cls(identity=identity, request=request, end_ids=end_ids, answer=outcome)


def request_again(
    prompt_ids: tuple[int, ...],
    sampling: SamplingParams,
    *,
    choice: int = 0,
    score_prompt: bool = False,
) -> GenerationRequest:
    """A request with what decides about its answer, and a wish for a receipt."""
    return GenerationRequest(
        prompt=prompt_ids,
        sampling=sampling,
        streaming=False,
        choice=choice,
        score_prompt=score_prompt,
        receipt=True,
    )


def _object(
    field: str, value: object, needed: Sequence[str], known: Sequence[str] | None
) -> Mapping[str, Any]:
    """An object with the needed keys, and none but the known ones where those are."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(field, _short(value), "an object")
    inside = "" if field == "receipt" else f"{field}."
    for key in needed:
        if key not in value:
            raise InvalidRequest(f"{inside}{key}", "nothing", "a value for it")
    for key in value:
        if known is not None and key not in known:
            allowed = f"one of {', '.join(known)}"
            raise InvalidRequest(f"{inside}{key}"[:60], "an unknown name", allowed)
    return value


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(field, _short(value), "text")
    return value


def _text_or_none(field: str, value: object) -> str | None:
    return None if value is None else _text(field, value)


def _ids(field: str, value: object) -> tuple[int, ...]:
    allowed = "a list of token ids"
    if not isinstance(value, list):
        raise InvalidRequest(field, _short(value), allowed)
    for token in value:
        if type(token) is not int or not 0 <= token < 2**31:
            raise InvalidRequest(field, _short(token), allowed)
    return tuple(value)


def _config(value: object) -> dict[str, object]:
    fields = _object("config", value, (), CONFIG_KEYS)
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def _versions(value: object) -> dict[str, str]:
    fields = _object("versions", value, (), None)
    return {name: _text(f"versions.{name}", each) for name, each in fields.items()}


def _request(
    prompt_ids: tuple[int, ...], value: object
) -> tuple[GenerationRequest, tuple[int, ...]]:
    known = (*_SAMPLING, *_REQUEST, "end_ids")
    fields = dict(_object("sampling", value, (*_CHOSEN, "end_ids"), known))
    end_ids = _ids("sampling.end_ids", fields.pop("end_ids"))
    for name in _CHOSEN:
        if fields[name] is None:
            raise InvalidRequest(f"sampling.{name}", "null", "a number")
    for name in ("greedy", "ignore_eos", "score_prompt"):
        if not isinstance(fields.get(name, False), bool):
            got = _short(fields[name])
            raise InvalidRequest(f"sampling.{name}", got, "true or false")
    if "logit_bias" in fields:
        fields["logit_bias"] = _bias(fields["logit_bias"])
    more = {name: fields.pop(name) for name in _REQUEST if name in fields}
    try:
        return request_again(prompt_ids, SamplingParams(**fields), **more), end_ids
    except InvalidRequest as error:
        field = f"sampling.{error.field}"
        raise InvalidRequest(field, error.got, error.allowed) from None


def _bias(value: object) -> dict[int, Any]:
    bias = _object("sampling.logit_bias", value, (), None)
    try:
        return {int(token): number for token, number in bias.items()}
    except ValueError as error:
        field, got = "sampling.logit_bias", _short(str(error))
        raise InvalidRequest(field, got, "numbers by token id") from None


def _outcome(value: object) -> Outcome:
    known = tuple(field.name for field in dataclasses.fields(Outcome))
    fields = _object("answer", value, ("ids", "digest"), known)
    return Outcome(
        ids=_ids("answer.ids", fields["ids"]),
        digest=_text("answer.digest", fields["digest"]),
        **{
            name: _text_or_none(f"answer.{name}", fields.get(name))
            for name in ("logprobs", "prompt_logprobs")
        },
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
