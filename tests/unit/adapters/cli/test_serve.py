import pytest

from jaxserver.adapters.cli.serve import is_loopback
from tests.unit.adapters.cli.scripted import ScriptedProgram


def test_one_line_says_that_it_is_ready() -> None:
    program = ScriptedProgram()
    program.address = "http://127.0.0.1:4321"
    result = program.run("serve", "--host", "127.0.0.1", "--port", "4321")
    assert result.exit_code == 0
    assert result.stdout == "jaxserver ready on http://127.0.0.1:4321\n"
    assert result.stderr == ""
    assert program.configs[0].port == 4321


def test_an_open_door_gives_a_warning() -> None:
    result = ScriptedProgram().run("serve", "--host", "0.0.0.0")
    assert result.stderr == (
        "warning: whoever reaches 0.0.0.0 port 2059 can use the server; "
        "set --api-key, or --host 127.0.0.1\n"
    )


def test_a_locked_door_gives_none() -> None:
    result = ScriptedProgram().run("serve", env={"JAXSERVER_API_KEY": "sesame"})
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.7", False),
        ("example.org", False),
    ],
)
def test_loopback_addresses_are_known(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
