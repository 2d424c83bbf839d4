"""`jaxserver replay` runs what a receipt says, and tells what came of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import ModelNotFound, NotReady
from jaxserver.ports.types import Chunk, FinishReason, Usage
from tests.unit.adapters.cli.scripted import ChunkGenerator, ScriptedProgram


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A receipt of an answer of two tokens."""
    written = tmp_path / "receipt.json"
    program = ScriptedProgram("Hel", "lo")
    assert program.run("generate", "hi", "--receipt", str(written)).exit_code == 0
    return written


def change(file: Path, path: Sequence[str], value: object) -> None:
    """Writes another value into a receipt."""
    written = json.loads(file.read_text())
    place: Any = written
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    file.write_text(json.dumps(written))


def test_the_same_answer_is_exit_code_0(file: Path) -> None:
    result = ScriptedProgram("Hel", "lo").run("replay", str(file))

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "the same, bitwise: 2 tokens",
        "model, weights, settings, tokenizer, template, config, versions: as they were",
    ]


def test_it_runs_what_the_receipt_says_as_the_receipt_says(file: Path) -> None:
    program = ScriptedProgram("Hel", "lo")
    program.run("replay", str(file))

    (request,) = program.generator.requests
    assert request.prompt == (1, 2, 3)
    assert request.sampling.seed == 7
    assert request.sampling.max_new_tokens == 9
    assert request.receipt
    assert not request.truncate
    assert program.configs == [
        ServerConfig(
            model="fake", slots=4, mesh_axes_shape=(1, 1, 1), pre_compile=False
        )
    ]
    assert not program.is_open


def test_the_model_may_lie_elsewhere(file: Path) -> None:
    program = ScriptedProgram("Hel", "lo")
    assert program.run("replay", str(file), "--model", "here").exit_code == 0
    assert program.configs[0].model == "here"


def test_a_whole_answer_with_a_receipt_is_taken_too(file: Path) -> None:
    answer = {"id": "x", "receipt": json.loads(file.read_text())}
    file.write_text(json.dumps(answer))
    assert ScriptedProgram("Hel", "lo").run("replay", str(file)).exit_code == 0


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([0, 5], "token 1, from 0, is 1 and was 5"),
        ([0], "token 1, from 0, is 1 and was none"),
        ([0, 1, 2], "token 2, from 0, is none and was 2"),
    ],
)
def test_another_answer_is_exit_code_1_with_the_first_token_that_differs(
    file: Path, ids: list[int], said: str
) -> None:
    change(file, ["answer", "ids"], ids)
    result = ScriptedProgram("Hel", "lo").run("replay", str(file))

    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.splitlines()[0] == f"another answer: {said}"


@pytest.mark.parametrize(
    ("field", "said"),
    [("digest", "digest is another"), ("logprobs", "log-probabilities are not")],
)
def test_other_digests_are_another_answer(file: Path, field: str, said: str) -> None:
    change(file, ["answer", field], "00")
    result = ScriptedProgram("Hel", "lo").run("replay", str(file))

    assert result.exit_code == 1
    assert said in result.stdout


CHANGES: dict[str, tuple[list[str], object, str]] = {
    "model": (["model"], "old", 'model differs: "fake", was "old"'),
    "weights": (["weights"], "00", 'weights differs: "aa", was "00"'),
    "settings": (["settings"], None, 'settings differs: "bb", was null'),
    "tokenizer": (["tokenizer"], "00", 'tokenizer differs: "cc", was "00"'),
    "template": (["template"], "00", 'template differs: null, was "00"'),
    "config": (["config", "slots"], 8, "config differs: slots is 4, was 8"),
    "an older config": (
        ["config", "page_size"],
        16,
        "config differs: page_size is not said, was 16",
    ),
    "versions": (
        ["versions", "jax"],
        "1",
        'versions differs: jax is not said, was "1"',
    ),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("is_same", [True, False])
def test_whatever_is_not_as_it_was_is_named_whether_the_answer_is_the_same_or_not(
    file: Path, name: str, is_same: bool
) -> None:
    path, value, said = CHANGES[name]
    change(file, path, value)
    pieces = ("Hel", "lo") if is_same else ("Hel", "lo", "!")
    result = ScriptedProgram(*pieces).run("replay", str(file))

    assert result.exit_code == (0 if is_same else 1)
    assert result.stdout.splitlines()[1:] == [said]


BROKEN: dict[str, str | bytes] = {
    "no JSON": "{",
    "no text": b"\xff\xfe\x00",
    "too deep": "[" * 100_000,
    "no object": "[]",
    "no receipt": '{"receipt": null}',
    "no fields": "{}",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_exit_code_2(tmp_path: Path, kind: str) -> None:
    content = BROKEN[kind]
    broken = tmp_path / "broken.json"
    broken.write_bytes(content if isinstance(content, bytes) else content.encode())
    program = ScriptedProgram()
    result = program.run("replay", str(broken))

    assert (result.exit_code, result.stdout, program.configs) == (2, "", [])
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_a_file_that_is_not_there_is_exit_code_2() -> None:
    result = ScriptedProgram().run("replay", "no/such.json")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: receipt: got no/such.json (no such file or directory), "
        "allowed is a JSON file\n"
    )


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["sampling", "seed"], -1, "sampling.seed: got -1"),
        (["config", "dtype"], "fp8", "dtype: got 'fp8'"),
        (["config", "port"], 1, "config.port: got an unknown name"),
    ],
)
def test_a_field_that_cannot_be_run_is_exit_code_2_and_named(
    file: Path, path: list[str], value: object, said: str
) -> None:
    change(file, path, value)
    result = ScriptedProgram().run("replay", str(file))

    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModelNotFound("there is no such model"), "error: there is no such model\n"),
        (RuntimeError("out of\nmemory"), "error: RuntimeError: out of memory\n"),
    ],
)
def test_a_model_that_cannot_be_opened_is_exit_code_2(
    file: Path, error: Exception, said: str
) -> None:
    program = ScriptedProgram()
    program.fail = lambda: error
    result = program.run("replay", str(file))
    assert (result.exit_code, result.stderr) == (2, said)


def test_a_request_that_is_refused_is_exit_code_2(file: Path) -> None:
    program = ScriptedProgram()
    program.generator.fail = lambda: NotReady("no", 1)
    assert program.run("replay", str(file)).exit_code == 2


def test_an_answer_that_is_stopped_is_neither(file: Path) -> None:
    last = Chunk(
        text="",
        token_ids=(),
        usage=Usage(prompt_tokens=1, completion_tokens=0),
        finish_reason=FinishReason.CANCELLED,
        seed=1,
    )
    program = ScriptedProgram(answers=ChunkGenerator([last]))
    assert program.run("replay", str(file)).exit_code == 130
