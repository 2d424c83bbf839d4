import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxserver
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import EngineFailed, ModelNotFound
from tests.unit.adapters.cli.scripted import ScriptedProgram, plain

SETTLED = ("serve", "generate", "chat", "plan")
ARGUMENTS = {
    "serve": ("serve", "--host", "::1"),
    "generate": ("generate", "hi"),
    "chat": ("chat",),
    "plan": ("plan",),
    "pull": ("pull",),
}
COMMANDS = (*ARGUMENTS, "replay")
KEYS = dataclasses.fields(ServerConfig)


def test_alone_it_shows_its_commands() -> None:
    result = ScriptedProgram().run()
    text = plain(result.output)
    assert "Usage: jaxserver" in text
    assert all(f" {command} " in text for command in COMMANDS)


def test_a_wrong_command_is_answered_with_the_near_one() -> None:
    result = ScriptedProgram().run("genrate", "hi")
    assert result.exit_code == 2
    assert "No such command 'genrate'. Did you mean 'generate'?" in plain(result.output)


def test_a_wrong_option_is_answered_with_the_near_one() -> None:
    result = ScriptedProgram().run("serve", "--max-lenght", "3")
    assert result.exit_code == 2
    assert "--max-length" in plain(result.output)


def test_the_version_is_the_package_s() -> None:
    result = ScriptedProgram().run("--version")
    assert (result.exit_code, result.stdout) == (
        0,
        f"jaxserver {jaxserver.__version__}\n",
    )


@pytest.mark.parametrize("command", SETTLED)
def test_help_fits_into_80_columns_and_names_every_setting(command: str) -> None:
    result = ScriptedProgram().run(command, "--help")
    assert result.exit_code == 0
    text = plain(result.output)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for field in KEYS:
        assert f" --{field.name.replace('_', '-')} " in text
    panels = ("Model", "Answer", "Speed and memory", "Server", "Prompts")
    assert all(f"─ {panel} ─" in text for panel in panels)


def test_help_tells_defaults_choices_and_how_a_switch_is_turned_off() -> None:
    shown = plain(ScriptedProgram().run("serve", "-h").output)
    text = " ".join(shown.replace("│", " ").split())
    assert "[default: 2059]" in text
    assert "[default: 1,-1,1]" in text
    assert "One of fp16, bf16, fp32" in text
    assert "turned off as in --no-pre-compile" in text


@pytest.mark.parametrize("command", ARGUMENTS)
def test_an_error_is_one_line_and_exit_code_1(command: str) -> None:
    program = ScriptedProgram()
    program.fail = lambda: ModelNotFound("no model\nnamed so, try `jaxserver pull`")
    result = program.run(*ARGUMENTS[command])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error: no model named so, try `jaxserver pull`\n"


def test_an_error_shows_where_it_came_from_when_debugging() -> None:
    program = ScriptedProgram()
    program.fail = lambda: EngineFailed("no")
    result = program.run("plan", env={"JAXSERVER_DEBUG": "1"})
    assert isinstance(result.exception, EngineFailed)


COUNTS = ("slots", "num_pages", "max_queue_tokens")
"""Numbers that need not be set."""


@pytest.mark.parametrize("command", SETTLED)
def test_every_setting_is_a_flag(command: str) -> None:
    texts = {
        "mesh_axes_names": "dp,fsdp,mp",
        "mesh_axes_shape": "-1,1,1",
        "dtype": "fp32",
        "quantize": "none",
        "kernels": "native",
        "backend": "native",
        "numerics": "invariant",
        "page_size": "128",
        "speculate": "none",
        "temperature": "0.5",
        "top_p": "0.5",
        "shutdown_timeout": "0.5",
        "watchdog_seconds": "0.5",
    }
    wanted: dict[str, object] = {**texts}
    wanted |= {"mesh_axes_names": ("dp", "fsdp", "mp"), "mesh_axes_shape": (-1, 1, 1)}
    wanted |= {"temperature": 0.5, "top_p": 0.5, "page_size": 128}
    wanted |= {"shutdown_timeout": 0.5, "watchdog_seconds": 0.5}
    arguments = list(ARGUMENTS[command])
    for field in KEYS:
        flag = field.name.replace("_", "-")
        if isinstance(field.default, bool):
            arguments.append(f"--no-{flag}")
            wanted[field.name] = False
        elif field.name in texts:
            arguments += [f"--{flag}", texts[field.name]]
        elif isinstance(field.default, int) or field.name in COUNTS:
            arguments += [f"--{flag}", "17"]
            wanted[field.name] = 17
        else:
            arguments += [f"--{flag}", f"my {flag}"]
            wanted[field.name] = f"my {flag}"
    program = ScriptedProgram()
    result = program.run(*arguments)
    assert result.exit_code == 0, result.output
    assert program.configs == [ServerConfig(**wanted)]  # type: ignore[arg-type]  # by key


def test_a_switch_can_be_turned_on_over_the_environment() -> None:
    program = ScriptedProgram()
    program.run("plan", "--pre-compile", env={"JAXSERVER_PRE_COMPILE": "no"})
    program.run("plan", env={"JAXSERVER_PRE_COMPILE": "no"})
    assert [config.pre_compile for config in program.configs] == [True, False]


def test_a_switch_goes_one_way_only() -> None:
    result = ScriptedProgram().run("plan", "--logging", "--no-logging")
    assert result.exit_code == 2
    assert "--logging: goes with no --no-logging" in plain(result.output)


def test_the_model_has_a_short_flag() -> None:
    program = ScriptedProgram()
    program.run("plan", "-m", "my/model")
    assert program.configs[0].model == "my/model"


def test_the_flag_wins_then_the_environment_then_the_file(tmp_path: Path) -> None:
    file = tmp_path / "jaxserver.toml"
    file.write_text("top_k = 1\nslots = 2\nmax_queue = 3\nmesh_axes_shape = [1, 1, -1]")
    program = ScriptedProgram()
    env = {"JAXSERVER_TOP_K": "10", "JAXSERVER_SLOTS": "20"}
    result = program.run("plan", "--config", str(file), "--top-k", "100", env=env)
    assert result.stderr == ""
    assert program.configs == [
        ServerConfig(top_k=100, slots=20, max_queue=3, mesh_axes_shape=(1, 1, -1))
    ]


def test_the_file_can_be_named_by_a_variable_and_a_flag_wins(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("slots = 1")
    two.write_text("slots = 2")
    program = ScriptedProgram()
    env = {"JAXSERVER_CONFIG": str(one)}
    program.run("plan", env=env)
    program.run("plan", "--config", str(two), env=env)
    program.run("plan", env={"JAXSERVER_CONFIG": ""})
    assert [config.slots for config in program.configs] == [1, 2, None]


def test_a_bad_value_is_refused_with_its_origin() -> None:
    program = ScriptedProgram()
    result = program.run("plan", "--max-stream-tokens", "many")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: max_stream_tokens: got 'many' from --max-stream-tokens, "
        "allowed is an integer from 1 to 1024\n"
    )
    assert program.configs == []


def test_a_file_that_is_not_there_is_refused() -> None:
    result = ScriptedProgram().run("plan", "--config", "no/such.toml")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: config: got no/such.toml (no such file or directory), "
        "allowed is a TOML file that can be read\n"
    )


def test_a_variable_that_is_no_setting_gives_a_warning() -> None:
    env = {"JAXSERVER_MAX_LENGHT": "3", "JAXSERVER_CACHE": "/x", "JAXSERVER_DEBUG": ""}
    result = ScriptedProgram().run("plan", "--json", env=env)
    assert result.exit_code == 0
    assert result.stderr == (
        "warning: JAXSERVER_MAX_LENGHT is not a setting "
        "(did you mean JAXSERVER_MAX_LENGTH?)\n"
    )


def test_plan_counts_memory_in_a_table() -> None:
    program = ScriptedProgram()
    program.memory = dataclasses.replace(program.memory, replicated=("norm", "[bias]"))
    result = program.run("plan", "--slots", "4")
    text = plain(result.stdout)
    shown = ("1,234,567 in float32", "3.0 MB", "500.0 kB", "3.5 MB", "norm", "[bias]")
    assert all(part in text for part in shown)
    assert program.configs[0].slots == 4


def test_plan_counts_memory_in_json() -> None:
    program = ScriptedProgram()
    counted = json.loads(program.run("plan", "--json").stdout)
    assert counted["weights_bytes_per_device"] == 3_000_000
    assert counted["bytes_per_device"] == 3_500_000
    assert counted["replicated"] == []


def test_pull_prints_where_the_model_lies() -> None:
    program = ScriptedProgram()
    assert program.run("pull", "some/model").stdout == "/models/some/model\n"
    program.run("pull")
    assert program.pulled == ["some/model", ServerConfig().model]


def test_neither_the_command_line_nor_its_help_needs_anything_heavy() -> None:
    script = (
        "import sys\n"
        "from tests.unit.adapters.cli.scripted import ScriptedProgram\n"
        "assert ScriptedProgram().run('serve', '--help').exit_code == 0\n"
        "heavy = {'jax', 'numpy', 'gradio', 'fastapi', 'transformers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=_root())


def _root() -> str:
    return os.fspath(Path(jaxserver.__file__).parents[1])
