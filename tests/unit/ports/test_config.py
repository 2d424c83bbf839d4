import dataclasses
import pickle
from typing import Any

import pytest

from jaxserver.ports.config import DEFAULT_MODEL, DTYPES, SECRETS, ServerConfig
from jaxserver.ports.errors import InvalidConfig

DOCUMENTED_DEFAULTS = {
    "host": "0.0.0.0",
    "port": 2059,
    "batch_size": 1,
    "max_length": 2048,
    "max_new_tokens": 2048,
    "max_stream_tokens": 32,
    "temperature": 0.1,
    "top_p": 0.95,
    "top_k": 50,
    "mesh_axes_names": ("dp", "fsdp", "mp"),
    "mesh_axes_shape": (1, -1, 1),
    "dtype": "fp16",
    "logging": True,
    "stream_tokens_for_gradio": True,
    "use_prefix_tokenizer": True,
    "pre_compile": True,
}
OWN_DEFAULTS = {
    "instruct_format": "",
    "prompt_prefix_chat": "",
    "prompt_postfix_chat": "",
    "model": DEFAULT_MODEL,
    "backend": "auto",
    "slots": None,
    "max_queue": 256,
    "prefix_cache": True,
    "speculate": "ngram",
    "page_size": None,
    "num_pages": None,
    "max_queue_tokens": None,
    "shutdown_timeout": 30.0,
    "watchdog_seconds": 300.0,
    "quantize": "auto",
    "kernels": "xla",
    "numerics": "invariant",
    "coordinator": None,
    "num_processes": 1,
    "process_id": 0,
    "traces": False,
    "profile": False,
    "api_key": None,
}
LARGEST = 2**31 - 1
SIZES = "3 sizes, at most one -1"
TRUTH = "true or false"


def integer(low: int, high: int = LARGEST) -> str:
    return f"an integer from {low} to {high}"


def ends(low: int, high: int = LARGEST) -> tuple[list[Any], list[Any], str]:
    """What an integer key takes, refuses and says."""
    refused = [low - 1, high + 1, float(low), str(low), True, None, [low]]
    return [low, high], refused, integer(low, high)


SWITCH = ([True, False], [0, 1, None, "true", "yes"], TRUTH)
ANY_TEXT = (["", "{system} {instruct}", "\u00e9"], [None, 1, b"a"], "text")
RULES: dict[str, tuple[list[Any], list[Any], str]] = {
    "host": (["::1", "localhost"], ["", None, 1], "an address"),
    "port": ends(0, 65535),
    "batch_size": ends(1, 64),
    "max_length": ends(2),
    "max_new_tokens": ends(1),
    "max_stream_tokens": ends(1, 1024),
    "temperature": (
        [0, 0.0, 1, 100],
        [-0.1, 100.5, float("nan"), float("inf"), "1", True, None],
        "a number from 0 to 100",
    ),
    "top_p": (
        [0, 0.5, 1],
        [-0.1, 1.1, float("nan"), "1", False, None],
        "a number from 0 to 1",
    ),
    "top_k": ends(0),
    "mesh_axes_names": (
        [("dp", "fsdp", "mp"), ["dp", "fsdp", "mp"]],
        [("dp",), ("mp", "fsdp", "dp"), "dp,fsdp,mp", (1, 2, 3), None],
        "dp,fsdp,mp",
    ),
    "mesh_axes_shape": (
        [(1, 1, 1), (8, 1, 1), [-1, 1, 2]],
        [
            *((1, 1), (1, 1, 1, 1), (-1, -1, 1), (0, 1, 1), (-2, 1, 1)),
            *((1.0, 1, 1), (True, 1, 1), "111", 111, None),
        ],
        SIZES,
    ),
    "dtype": (
        list(DTYPES),
        ["fp8", "FP16", "", None, 16],
        "one of fp16, bf16, fp32, float16, bfloat16, float32",
    ),
    "logging": SWITCH,
    "stream_tokens_for_gradio": SWITCH,
    "use_prefix_tokenizer": SWITCH,
    "pre_compile": SWITCH,
    "instruct_format": ANY_TEXT,
    "prompt_prefix_chat": ANY_TEXT,
    "prompt_postfix_chat": ANY_TEXT,
    "model": (
        ["some/model", "a.gguf"],
        ["", None, 1],
        "a packaged model, a folder, a .gguf file or a hub id",
    ),
    "backend": (
        ["auto", "native", "flax"],
        ["torch", "", None],
        "one of auto, native, flax",
    ),
    "slots": (
        [None, 1, 256],
        [0, 257, 1.0, True, "1"],
        f"{integer(1, 256)}, or none",
    ),
    "max_queue": ends(0),
    "prefix_cache": SWITCH,
    "speculate": (
        ["ngram", "none", "some/model", "a.gguf"],
        ["", None, 1],
        "ngram, none, or a model as for `model`",
    ),
    "page_size": (
        [None, 16, 128, 1024],
        [0, 8, 17, 2048, True, "16"],
        "a power of 2 from 16 to 1024, or none",
    ),
    "num_pages": ([None, 1], [0, True, "1"], f"{integer(1)}, or none"),
    "max_queue_tokens": ([None, 1], [0, True, "1"], f"{integer(1)}, or none"),
    "shutdown_timeout": (
        [0, 0.5, 86400],
        [-1, 86401, float("nan"), "30", True, None],
        "a number from 0 to 86400",
    ),
    "watchdog_seconds": (
        [0.1, 300, 86400],
        [0, 86401, float("inf"), "300", True, None],
        "a number from 0.1 to 86400",
    ),
    "quantize": (
        ["auto", "none", "int8", "fp8"],
        ["fp3", "int4", None, False],
        "one of auto, none, int8, fp8",
    ),
    "kernels": (["xla", "native"], ["jax", None], "one of xla, native"),
    "numerics": (["invariant", "fast"], ["exact", None], "one of invariant, fast"),
    "coordinator": ([None, "10.0.0.1:4000"], ["", 1], "HOST:PORT, or none"),
    "num_processes": ends(1),
    "process_id": ends(0),
    "traces": SWITCH,
    "profile": SWITCH,
    "api_key": ([None, "sesame"], ["", 1, b"sesame"], "text, or none"),
}
ACCEPTED = [(key, value) for key, rule in RULES.items() for value in rule[0]]
REFUSED = [(key, value, rule[2]) for key, rule in RULES.items() for value in rule[1]]


def test_defaults_are_the_documented_ones() -> None:
    assert dataclasses.asdict(ServerConfig()) == DOCUMENTED_DEFAULTS | OWN_DEFAULTS


def test_every_key_has_a_rule_here_and_a_word_of_help() -> None:
    fields = dataclasses.fields(ServerConfig)
    assert [field.name for field in fields] == list(RULES)
    assert all(field.metadata["help"].endswith(".") for field in fields)


@pytest.mark.parametrize(("key", "value"), ACCEPTED)
def test_a_value_that_fits_is_taken(key: str, value: object) -> None:
    wanted = tuple(value) if isinstance(value, list) else value
    assert getattr(ServerConfig.of({key: value}), key) == wanted


@pytest.mark.parametrize(("key", "value", "allowed"), REFUSED)
def test_a_value_that_does_not_fit_is_refused_by_name(
    key: str, value: object, allowed: str
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        ServerConfig.of({key: value})
    shown = tuple(value) if isinstance(value, list) else value
    got = "a secret" if key in SECRETS else repr(shown)
    assert str(caught.value) == f"{key}: got {got}, allowed is {allowed}"
    assert (caught.value.key, caught.value.allowed) == (key, allowed)


def test_an_unknown_key_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidConfig) as caught:
        ServerConfig.of({"max_lenght": 3})
    message = str(caught.value)
    assert message.startswith("max_lenght: got an unknown key, allowed is one of ")
    assert all(key in message for key in RULES)


def test_nothing_means_the_defaults() -> None:
    assert ServerConfig.of(None) == ServerConfig.of({}) == ServerConfig()


def test_a_configuration_is_taken_as_it_is() -> None:
    config = ServerConfig(port=1)
    assert ServerConfig.of(config) is config


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ServerConfig().port = 1  # type: ignore[misc]  # the point of the test


def test_a_changed_copy_is_checked_too() -> None:
    with pytest.raises(InvalidConfig, match="port"):
        dataclasses.replace(ServerConfig(), port=-1)


def test_equal_configurations_are_one_key_of_a_mapping() -> None:
    configs = {ServerConfig(slots=3): 1, ServerConfig.of({"slots": 3}): 2}
    assert configs == {ServerConfig(slots=3): 2}


def test_a_configuration_survives_pickling() -> None:
    config = ServerConfig.of({"mesh_axes_shape": [2, 1, 1], "api_key": "sesame"})
    assert pickle.loads(pickle.dumps(config)) == config


def test_secrets_are_shown_as_whether_they_are_set() -> None:
    assert ServerConfig().public()["api_key"] is False
    shown = ServerConfig(api_key="sesame").public()
    assert shown["api_key"] is True
    assert "sesame" not in repr(shown)
    assert list(shown) == list(RULES)
    assert shown["mesh_axes_shape"] == (1, -1, 1)


def test_a_refused_secret_is_not_told() -> None:
    with pytest.raises(InvalidConfig) as caught:
        ServerConfig.of({"api_key": ["sesame"]})
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "long_name"),
    [("fp16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32")],
)
def test_short_and_long_dtype_names_mean_the_same(name: str, long_name: str) -> None:
    assert DTYPES[name] == DTYPES[long_name] == long_name
