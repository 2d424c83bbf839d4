"""Settling a configuration, for any value from any place."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserver.adapters.cli.settings import KINDS, flag, settle, variable, warnings
from jaxserver.ports.config import DTYPES, ServerConfig
from jaxserver.ports.errors import InvalidConfig

WORDS = st.text(min_size=1).filter(lambda text: text.lower() != "none")
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "host": WORDS,
    "port": st.integers(0, 65535),
    "batch_size": st.integers(1, 64),
    "max_length": st.integers(2, 2**31 - 1),
    "max_new_tokens": st.integers(1, 2**31 - 1),
    "max_stream_tokens": st.integers(1, 1024),
    "temperature": st.floats(0, 100),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(0, 2**31 - 1),
    "mesh_axes_names": st.just(("dp", "fsdp", "mp")),
    "mesh_axes_shape": st.permutations([-1, 1, 4]).map(tuple),
    "dtype": st.sampled_from(list(DTYPES)),
    "instruct_format": st.text(),
    "prompt_prefix_chat": st.text(),
    "prompt_postfix_chat": st.text(),
    "model": WORDS,
    "backend": st.sampled_from(["auto", "native", "flax"]),
    "slots": st.none() | st.integers(1, 256),
    "max_queue": st.integers(0, 2**31 - 1),
    "quantize": st.sampled_from(["auto", "none", "int8", "fp8"]),
    "numerics": st.just("invariant"),
    "api_key": st.none() | WORDS,
} | {key: st.booleans() for key, kind in KINDS.items() if kind.type is bool}
SOME = st.fixed_dictionaries({}, optional=VALUES)
NOWHERE: dict[str, dict[str, Any]] = {"flags": {}, "environment": {}, "file": {}}
UNSET = dict.fromkeys(KINDS)


def as_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def as_flags(values: dict[str, Any]) -> dict[str, Any]:
    """Switches as booleans, the rest as texts."""
    return {
        key: value if isinstance(value, bool) else as_text(value)
        for key, value in values.items()
    }


def as_environment(values: dict[str, Any]) -> dict[str, str]:
    return {variable(key): as_text(value) for key, value in values.items()}


def as_file(values: dict[str, Any]) -> dict[str, Any]:
    """TOML has lists instead of tuples, and nothing for None."""
    return {
        key: list(value) if isinstance(value, tuple) else as_word(value)
        for key, value in values.items()
    }


def as_word(value: Any) -> Any:
    return "none" if value is None else value


@given(flags=SOME, environment=SOME, file=SOME)
def test_every_key_comes_from_the_first_place_that_names_it(
    flags: dict[str, Any], environment: dict[str, Any], file: dict[str, Any]
) -> None:
    config = settle(UNSET | as_flags(flags), as_environment(environment), as_file(file))
    defaults = {
        field.name: getattr(ServerConfig(), field.name)
        for field in dataclasses.fields(ServerConfig)
    }
    wanted = defaults | file | environment | flags
    assert config == ServerConfig(**wanted)


@given(values=SOME)
def test_every_place_says_the_same_in_its_own_way(values: dict[str, Any]) -> None:
    config = ServerConfig(**values)
    assert settle(as_flags(values), {}, {}) == config
    assert settle({}, as_environment(values), {}) == config
    assert settle({}, {}, as_file(values)) == config


def fits_or_names(key: str, origin: str, **places: dict[str, Any]) -> bool:
    """The key was taken, or was refused by its name and where it came from."""
    try:
        config = settle(**{**NOWHERE, **places})
    except InvalidConfig as error:
        return error.key == key and error.got.endswith(f" from {origin}")
    return ServerConfig.of({key: getattr(config, key)}) == config


@given(key=st.sampled_from(list(KINDS)), text=st.text())
def test_any_text_is_taken_or_refused_by_key_and_origin(key: str, text: str) -> None:
    assert fits_or_names(key, flag(key), flags={key: text})
    assert fits_or_names(key, variable(key), environment={variable(key): text})


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(key=st.sampled_from(list(KINDS)), value=JSON_LIKE)
def test_anything_a_file_can_hold_is_taken_or_refused_by_key(
    key: str, value: object
) -> None:
    assert fits_or_names(key, "the configuration file", file={key: value})


@given(key=st.text().filter(lambda key: key not in KINDS), value=JSON_LIKE)
def test_any_other_key_of_a_file_is_refused(key: str, value: object) -> None:
    with pytest.raises(InvalidConfig) as caught:
        settle({}, {}, {key: value})
    assert caught.value.key == key


@given(values=SOME, name=st.text(st.characters(categories=["Lu"]), max_size=20))
def test_only_variables_that_are_no_settings_are_warned_about(
    values: dict[str, Any], name: str
) -> None:
    known = as_environment(values)
    assert warnings(known) == []
    unknown = f"JAXSERVER_{name}_"
    (line,) = warnings({**known, unknown: ""})
    assert line.startswith(f"{unknown} is not a setting")
