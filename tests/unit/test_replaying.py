"""A model from a folder gives receipts, and `replay` tells whether it is still that."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from typer.testing import CliRunner, Result

from jaxserver import __main__ as command
from jaxserver.adapters.cli.app import build
from jaxserver.adapters.cli.program import Program
from jaxserver.server import JAXServer
from tests.unit.tiny_folder import TEMPLATE, write_model

PROGRAM = build(
    Program(
        open=command._open,
        serve=command._serve,
        pull=command._pull,
        plan=command._plan,
    )
)
SIZES = {"max_length": 128, "slots": 2, "dtype": "fp32", "mesh_axes_shape": (1, 1, 1)}
CONFIG = {**SIZES, "pre_compile": False, "logging": False}


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(PROGRAM, [*map(str, arguments)])


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models") / "tiny"
    made.mkdir()
    return write_model(made)


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A receipt of an answer of some tokens."""
    written = tmp_path_factory.mktemp("receipts") / "receipt.json"
    sizes = ("--max-length", "128", "--slots", "2", "--mesh-axes-shape", "1,1,1")
    wishes = ("--max-new-tokens", "24", "--seed", "3", "--temperature", "1")
    more = ("--dtype", "fp32", "--raw", "--no-pre-compile", "--model", folder)
    where = ("--top-p", "1", "--receipt", written)
    result = run("generate", "the quick", *sizes, *wishes, *more, *where)
    assert result.exit_code == 0, result.output
    assert len(receipt_in(written)["answer"]["ids"]) > 8
    return written


def receipt_in(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_a_receipt_says_which_files_the_model_was_made_of(
    file: Path, folder: Path
) -> None:
    receipt = receipt_in(file)

    assert receipt["model"] == "tiny"
    assert receipt["weights"] == digest(folder / "model.safetensors")
    assert receipt["settings"] == digest(folder / "config.json")
    assert receipt["template"] == hashlib.sha256(TEMPLATE.encode()).hexdigest()
    assert receipt["config"]["backend"] == "native"
    assert receipt["config"]["slots"] == 2
    assert set(receipt["versions"]) == {
        *("jaxserver", "jax", "jaxlib", "python", "device")
    }


def test_a_receipt_tells_nothing_of_where_it_was_made(file: Path, folder: Path) -> None:
    text = file.read_text()
    assert str(folder.parent) not in text
    assert "2059" not in text


def test_it_replays_bitwise(file: Path, folder: Path) -> None:
    result = run("replay", file, "--model", folder)

    assert result.exit_code == 0, result.output
    count = len(receipt_in(file)["answer"]["ids"])
    assert result.stdout.startswith(f"the same, bitwise: {count} tokens\n")
    assert result.stdout.endswith("as they were\n")


def test_the_model_is_found_under_its_name_where_it_lies_there(
    file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder.parent)
    assert run("replay", file).exit_code == 0
    monkeypatch.chdir(tmp_path)
    elsewhere = run("replay", file)
    assert elsewhere.exit_code == 2
    assert "there is no 'tiny'" in elsewhere.stderr


@pytest.fixture
def other(folder: Path, tmp_path: Path) -> Path:
    """A copy of the model, of the same name, for a test to change."""
    return Path(shutil.copytree(folder, tmp_path / "tiny"))


def named(file: Path, model: Path) -> list[str]:
    """What a replay, which gives another answer, says is not as it was."""
    result = run("replay", file, "--model", model)
    assert result.exit_code == 1, result.output
    first, *changes = result.stdout.splitlines()
    assert first.startswith("another answer: token ")
    assert all(" differs: " in change for change in changes)
    return [change.partition(" ")[0] for change in changes]


def test_other_weights_are_named(file: Path, other: Path) -> None:
    weights = load_file(other / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    weights[name] = np.ascontiguousarray(weights[name][::-1])
    save_file(weights, other / "model.safetensors")
    assert named(file, other) == ["weights"]


def test_other_settings_of_the_model_are_named(file: Path, other: Path) -> None:
    settings = json.loads((other / "config.json").read_text())
    settings["rope_theta"] = 10.0
    (other / "config.json").write_text(json.dumps(settings))
    assert named(file, other) == ["settings"]


def test_another_tokenizer_is_named(file: Path, other: Path) -> None:
    tokenizer = Tokenizer.from_file(str(other / "tokenizer.json"))
    drawn = receipt_in(file)["answer"]["ids"][5]
    settings = json.loads((other / "tokenizer_config.json").read_text())
    settings["eos_token"] = tokenizer.id_to_token(drawn)
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    assert named(file, other) == ["tokenizer"]


def test_another_template_is_named_although_the_prompt_is_the_same(
    file: Path, other: Path
) -> None:
    (other / "chat_template.jinja").write_text("{{ messages }}")
    result = run("replay", file, "--model", other)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].startswith("template differs: ")


def test_a_configuration_that_this_version_does_not_know_is_named(
    file: Path, folder: Path, tmp_path: Path
) -> None:
    changed = receipt_in(file)
    changed["config"]["beams"] = 4
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    result = run("replay", tmp_path / "changed.json", "--model", folder)
    assert result.exit_code == 2
    assert "config.beams: got an unknown name" in result.stderr


def test_a_seed_that_was_changed_gives_another_answer(
    file: Path, folder: Path, tmp_path: Path
) -> None:
    changed = receipt_in(file)
    changed["sampling"]["seed"] += 1
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    assert run("replay", tmp_path / "changed.json", "--model", folder).exit_code == 1


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[JAXServer]:
    server = JAXServer.load(folder, CONFIG)
    yield server
    server.end()


ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "the dog"}],
        "max_tokens": 9,
        "logprobs": True,
        "top_logprobs": 2,
    },
    "/v1/completions": {"prompt": "the dog", "max_tokens": 9, "stop": ["q"]},
    "/instruct": {"prompt": "the dog", "max_new_tokens": 9},
    "/chat": {"prompt": "fox", "history": [["the", "dog"]], "max_new_tokens": 9},
}


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_answer_of_the_server_replays_in_another_process_s_way(
    served: JAXServer, folder: Path, tmp_path: Path, path: str, stream: bool
) -> None:
    client = TestClient(served.app(pages=False))
    asked = {**ASKED[path], "receipt": True, "stream": stream, "temperature": 1}
    text = client.post(path, json=asked).text
    if stream:
        events = [line.removeprefix("data: ") for line in text.splitlines() if line]
        text = events[-2]
    answer = tmp_path / "answer.json"
    answer.write_text(text)
    result = run("replay", answer, "--model", folder)

    assert result.exit_code == 0, result.output
    assert receipt_in(answer)["receipt"]["config"]["slots"] == 2
    if path.startswith("/v1"):
        told = receipt_in(answer)["system_fingerprint"]
        assert told == served.fingerprint()
