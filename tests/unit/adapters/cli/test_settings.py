from pathlib import Path
from typing import Any

import pytest

from jaxserver.adapters.cli.settings import (
    KINDS,
    Kind,
    read_file,
    settle,
    value_of,
    warnings,
)
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import InvalidConfig


def test_without_anything_the_defaults_hold() -> None:
    assert settle({}, {}, {}) == ServerConfig()
    assert settle(dict.fromkeys(KINDS), {"HOME": "/"}, {}) == ServerConfig()


@pytest.mark.parametrize(
    ("flags", "environment", "file", "slots"),
    [
        ({}, {}, {"slots": 3}, 3),
        ({}, {"JAXSERVER_SLOTS": "2"}, {"slots": 3}, 2),
        ({"slots": "1"}, {"JAXSERVER_SLOTS": "2"}, {"slots": 3}, 1),
        ({"slots": "none"}, {"JAXSERVER_SLOTS": "2"}, {"slots": 3}, None),
        ({"slots": None}, {"JAXSERVER_SLOTS": "NONE"}, {"slots": 3}, None),
        ({}, {}, {"slots": "none"}, None),
    ],
)
def test_the_first_place_that_names_a_key_wins(
    flags: dict[str, Any],
    environment: dict[str, str],
    file: dict[str, Any],
    slots: int | None,
) -> None:
    assert settle(flags, environment, file).slots == slots


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("7", int, 7),
        ("-1", int, -1),
        ("7.5", int, "7.5"),
        ("seven", int, "seven"),
        ("0.5", float, 0.5),
        ("half", float, "half"),
        ("True", bool, True),
        ("on", bool, True),
        ("1", bool, True),
        ("no", bool, False),
        ("OFF", bool, False),
        ("perhaps", bool, "perhaps"),
        ("1,-1, 1", tuple[int, ...], (1, -1, 1)),
        ("1,x", tuple[int, ...], "1,x"),
        ("dp, fsdp", tuple[str, ...], ("dp", "fsdp")),
        ("text", str, "text"),
        ("none", str, "none"),
        ("", str, ""),
    ],
)
def test_texts_become_values_or_stay_to_be_refused(
    text: str, kind: Any, expected: object
) -> None:
    assert value_of(text, Kind(kind, optional=False)) == expected


@pytest.mark.parametrize(
    ("flags", "environment", "file", "message"),
    [
        (
            {"top_k": "-1"},
            {},
            {},
            "top_k: got -1 from --top-k, allowed is an integer from 0 to 2147483647",
        ),
        (
            {},
            {"JAXSERVER_LOGGING": "perhaps"},
            {},
            "logging: got 'perhaps' from JAXSERVER_LOGGING, allowed is true or false",
        ),
        (
            {},
            {},
            {"port": "80"},
            "port: got '80' from the configuration file, allowed is an integer from 0 "
            "to 65535",
        ),
        (
            {},
            {"JAXSERVER_SLOTS": ""},
            {},
            "slots: got '' from JAXSERVER_SLOTS, allowed is an integer from 1 to 256, "
            "or none",
        ),
        (
            {},
            {},
            {"host": "none", "model": ""},
            "model: got '' from the configuration file, allowed is a packaged model, "
            "a folder, a .gguf file or a hub id",
        ),
    ],
)
def test_a_bad_value_is_refused_with_its_origin(
    flags: dict[str, Any],
    environment: dict[str, str],
    file: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        settle(flags, environment, file)
    assert str(caught.value) == message


def test_a_secret_is_not_told() -> None:
    with pytest.raises(InvalidConfig) as caught:
        settle({}, {}, {"api_key": ["sesame"]})
    assert "sesame" not in str(caught.value)


def test_an_empty_secret_is_refused_rather_than_none() -> None:
    with pytest.raises(InvalidConfig, match="api_key: got a secret from JAXSERVER_API"):
        settle({}, {"JAXSERVER_API_KEY": ""}, {})


def test_a_bad_value_that_is_overruled_does_no_harm() -> None:
    assert settle({"top_k": "3"}, {"JAXSERVER_TOP_K": "x"}, {"top_k": -1}).top_k == 3


def test_an_unknown_key_of_the_file_is_refused_with_the_near_one() -> None:
    with pytest.raises(InvalidConfig) as caught:
        settle({}, {}, {"max-length": 3})
    message = str(caught.value)
    assert message.startswith(
        "max-length: got an unknown key in the configuration file "
        "(did you mean max_length?), allowed is one of api_key, backend, "
    )


def test_an_unknown_key_near_to_none_has_no_hint() -> None:
    with pytest.raises(InvalidConfig) as caught:
        settle({}, {}, {"zzz": {}})
    assert caught.value.got == "an unknown key in the configuration file"


def test_a_file_is_toml(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('model = "\u00e9"\npre_compile = false\ntemperature = 1')
    file = read_file(path)
    assert file == {"model": "\u00e9", "pre_compile": False, "temperature": 1}
    assert settle({}, {}, file).pre_compile is False


@pytest.mark.parametrize("content", [b"slots 3", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidConfig) as caught:
        read_file(path)
    assert str(path) in str(caught.value)
    assert caught.value.allowed == "a TOML file that can be read"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="is a directory"):
        read_file(tmp_path)


def test_only_variables_that_look_like_ours_are_warned_about() -> None:
    names = ["TOPK", "TOP_K", "CACHE", "CONFIG", "DEBUG", "9"]
    variables = {"HOME": "/"} | {f"JAXSERVER_{name}": "" for name in names}
    assert warnings(variables) == [
        "JAXSERVER_9 is not a setting",
        "JAXSERVER_TOPK is not a setting (did you mean JAXSERVER_TOP_K?)",
    ]
