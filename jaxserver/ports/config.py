"""The one configuration of a server: keys, defaults, and what each may be."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from jaxserver.ports.errors import InvalidConfig

DEFAULT_MODEL = "smollm2-135m-instruct"
DTYPES = {
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float32": "float32",
}
SECRETS = frozenset({"api_key"})


@dataclasses.dataclass(frozen=True, slots=True)
class _Rule:
    """What a value may be: a test and the words for it."""

    fits: Callable[[Any], bool]
    allowed: str


def _key(default: Any, rule: _Rule, help_text: str) -> Any:
    return dataclasses.field(
        default=default, metadata={"rule": rule, "help": help_text}
    )


def _integer(low: int, high: int = 2**31 - 1) -> _Rule:
    def fits(value: Any) -> bool:
        is_int = isinstance(value, int) and not isinstance(value, bool)
        return is_int and low <= value <= high

    return _Rule(fits, f"an integer from {low} to {high}")


def _number(low: float, high: float) -> _Rule:
    def fits(value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and low <= value <= high

    return _Rule(fits, f"a number from {low:g} to {high:g}")


def _one_of(*values: str) -> _Rule:
    return _Rule(lambda value: value in values, f"one of {', '.join(values)}")


def _text(allowed: str) -> _Rule:
    return _Rule(lambda value: isinstance(value, str) and bool(value), allowed)


def _or_none(rule: _Rule) -> _Rule:
    return _Rule(
        lambda value: value is None or rule.fits(value), f"{rule.allowed}, or none"
    )


def _is_mesh_shape(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and all(_integer(-1).fits(size) and size != 0 for size in value)
        and value.count(-1) <= 1
    )


def _is_page_size(value: Any) -> bool:
    return _integer(16, 1024).fits(value) and value.bit_count() == 1


_BOOLEAN = _Rule(lambda value: isinstance(value, bool), "true or false")
_ANY_TEXT = _Rule(lambda value: isinstance(value, str), "text")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Everything that can be set. Each key is also a flag and an environment variable.

    The original's keys keep their names and defaults. Lengths are counted in tokens.

    Raises:
        InvalidConfig: A value does not fit its key.
    """

    host: str = _key("0.0.0.0", _text("an address"), "Address to listen on.")
    port: int = _key(2059, _integer(0, 65535), "Port; 0 takes a free one.")
    batch_size: int = _key(1, _integer(1, 64), "Prompts prefilled together.")
    max_length: int = _key(
        2048, _integer(2), "Longest sequence, prompt and answer together."
    )
    max_new_tokens: int = _key(
        2048, _integer(1), "Most tokens of an answer when a request does not say."
    )
    max_stream_tokens: int = _key(
        32, _integer(1, 1024), "Most tokens decoded per dispatch."
    )
    temperature: float = _key(
        0.1, _number(0, 100), "Sampling temperature, where a request does not say."
    )
    top_p: float = _key(
        0.95,
        _number(0, 1),
        "Keep the likeliest tokens up to this probability, where a request is silent.",
    )
    top_k: int = _key(
        50,
        _integer(0),
        "Keep this many likeliest tokens, where a request is silent; 0 keeps all.",
    )
    mesh_axes_names: tuple[str, ...] = _key(
        ("dp", "fsdp", "mp"),
        _Rule(lambda value: value == ("dp", "fsdp", "mp"), "dp,fsdp,mp"),
        "Names of the device mesh's axes.",
    )
    mesh_axes_shape: tuple[int, ...] = _key(
        (1, -1, 1),
        _Rule(lambda v: _is_mesh_shape(v) and len(v) == 3, "3 sizes, at most one -1"),
        "Sizes of the device mesh's axes; one -1 takes what is left.",
    )
    dtype: str = _key("fp16", _one_of(*DTYPES), "Type of the parameters.")
    logging: bool = _key(True, _BOOLEAN, "Write one structured line a request.")
    stream_tokens_for_gradio: bool = _key(
        True, _BOOLEAN, "The pages show an answer as it comes, or whole."
    )
    use_prefix_tokenizer: bool = _key(
        True,
        _BOOLEAN,
        "Cut prompts that are too long on /instruct, /chat, the pages and in process.",
    )
    pre_compile: bool = _key(True, _BOOLEAN, "Compile everything before ready.")
    instruct_format: str = _key(
        "",
        _ANY_TEXT,
        "Prompt of an instruction, with {system} and {instruct}; empty: the model's.",
    )
    prompt_prefix_chat: str = _key(
        "", _ANY_TEXT, "Written before a chat prompt; empty: the model's."
    )
    prompt_postfix_chat: str = _key(
        "", _ANY_TEXT, "Written after a chat prompt; empty: the model's."
    )
    model: str = _key(
        DEFAULT_MODEL,
        _text("a packaged model, a folder, a .gguf file or a hub id"),
        "A packaged model's name, a folder, a .gguf file or a hub id.",
    )
    backend: str = _key(
        "auto",
        _one_of("auto", "native", "flax"),
        "What runs the model; auto: the native transformer where it knows the family, "
        "else the Flax class.",
    )
    slots: int | None = _key(
        None, _or_none(_integer(1, 256)), "Concurrent requests; none: by device."
    )
    max_queue: int = _key(
        256, _integer(0), "Requests that may wait for a slot before 429 is answered."
    )
    prefix_cache: bool = _key(
        True, _BOOLEAN, "Prompts that begin alike share the work on their beginning."
    )
    speculate: str = _key(
        "ngram",
        _text("ngram, none, or a model as for `model`"),
        "Guess tokens, which changes no answer; ngram: those that followed the newest "
        "ones before, where running them costs little; else a smaller model with the "
        "same vocabulary, which runs beside the other.",
    )
    page_size: int | None = _key(
        None,
        _or_none(_Rule(_is_page_size, "a power of 2 from 16 to 1024")),
        "Tokens of a page of the cache; none: a page is a whole sequence, which is "
        "fastest on a CPU.",
    )
    num_pages: int | None = _key(
        None,
        _or_none(_integer(1)),
        "Pages of the cache; none: as many as all slots need for the longest "
        "sequences. With fewer, requests may have to wait or begin again.",
    )
    max_queue_tokens: int | None = _key(
        None,
        _or_none(_integer(1)),
        "Tokens that the prompts of waiting requests may have together before 429 is "
        "answered; none: any number.",
    )
    shutdown_timeout: float = _key(
        30.0,
        _number(0, 86400),
        "Seconds that requests get to finish when the server ends.",
    )
    watchdog_seconds: float = _key(
        300.0,
        _number(0.1, 86400),
        "Longest that a step may take, late compiling included, before the engine is "
        "given up.",
    )
    quantize: str = _key(
        "auto",
        _one_of("auto", "none", "int8", "fp8"),
        "How weights are kept; none: in `dtype`; int8, fp8: in 8 bits; auto: on a CPU "
        "in int8 if `dtype` has 16 bits and no Flax class runs them, else in floats.",
    )
    kernels: str = _key(
        "xla",
        _one_of("xla", "native"),
        "What attends, and multiplies with weights in int8, on a CPU; xla: what JAX "
        "compiles; native: our own C++, which the first start compiles for a processor "
        "with AVX512-VNNI. It is faster; its answers may differ from those of xla.",
    )
    numerics: str = _key(
        "invariant",
        _one_of("invariant", "fast"),
        "invariant: an answer's bits are a function of its request; fast: Flax classes "
        "score prompts and processes share their beginnings, though bits may differ.",
    )
    coordinator: str | None = _key(
        None,
        _or_none(_text("HOST:PORT")),
        "Where process 0 is reached by the others that serve one model with it.",
    )
    num_processes: int = _key(1, _integer(1), "Processes that serve one model.")
    process_id: int = _key(
        0, _integer(0), "Which of them this is; 0 takes the requests."
    )
    traces: bool = _key(
        False,
        _BOOLEAN,
        "Send OpenTelemetry traces where the OTEL_* variables say; wants the extra "
        "`otel`.",
    )
    profile: bool = _key(False, _BOOLEAN, "Serve POST /profile.")
    api_key: str | None = _key(
        None, _or_none(_text("text")), "Wanted by every route but /health and /ready."
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, rule = getattr(self, field.name), field.metadata["rule"]
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            if not rule.fits(value):
                got = "a secret" if field.name in SECRETS else repr(value)
                raise InvalidConfig(field.name, got, rule.allowed)

    @classmethod
    def of(
        cls,
        config: "ServerConfig | Mapping[str, Any] | None",
        model: str | os.PathLike[str] | None = None,
    ) -> "ServerConfig":
        """Takes a configuration, a mapping with the same keys, or None for defaults.

        A `model` takes the place of the configuration's.

        Raises:
            InvalidConfig: A key is unknown or a value does not fit.
        """
        if not isinstance(config, ServerConfig):
            config = cls._of_mapping(config or {})
        if model is None:
            return config
        return dataclasses.replace(config, model=os.fspath(model))

    @classmethod
    def _of_mapping(cls, config: Mapping[str, Any]) -> "ServerConfig":
        names = {field.name for field in dataclasses.fields(cls)}
        for key in config:
            if key not in names:
                allowed = f"one of {', '.join(sorted(names))}"
                raise InvalidConfig(str(key), "an unknown key", allowed)
        return cls(**config)

    def public(self) -> dict[str, object]:
        """Every key and its value, secrets as whether they are set."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            key: value is not None if key in SECRETS else value
            for key, value in values.items()
        }
