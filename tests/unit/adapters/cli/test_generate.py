import dataclasses
import json
import struct
from pathlib import Path

import pytest

from jaxserver.ports.errors import InvalidRequest, ServerFull
from jaxserver.ports.prompt import Rendered
from jaxserver.ports.receipt import Outcome, Receipt
from jaxserver.ports.types import (
    Chunk,
    FinishReason,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from tests.unit.adapters.cli.scripted import (
    ChunkGenerator,
    NoTemplate,
    ScriptedProgram,
    plain,
)


def test_the_answer_goes_to_stdout_and_its_counts_to_stderr() -> None:
    program = ScriptedProgram("Hel", "lo")
    result = program.run("generate", "hi")
    assert result.exit_code == 0
    assert result.stdout == "Hello\n"
    assert result.stderr.startswith("3 prompt tokens, 2 tokens in 0.")
    assert result.stderr.endswith("tokens/s), seed 7, stop\n")
    assert not program.is_open


def test_the_prompt_is_put_as_a_user_s_message() -> None:
    program = ScriptedProgram()
    program.run("generate", "hi", "--system", "be brief")
    request = program.generator.requests[0]
    assert request.prompt == "system: be brief\nuser: hi\nassistant: "
    assert isinstance(request.prompt, Rendered)
    assert request.streaming
    assert not request.truncate


def test_a_raw_prompt_is_taken_as_it_is() -> None:
    program = ScriptedProgram()
    program.run("generate", "--raw", "Once upon")
    request = program.generator.requests[0]
    assert request.prompt == "Once upon"
    assert not isinstance(request.prompt, Rendered)


def test_a_model_without_a_template_continues_the_prompt() -> None:
    program = ScriptedProgram(formatter=NoTemplate())
    assert program.run("generate", "Once upon").exit_code == 0
    request = program.generator.requests[0]
    assert request.prompt == "Once upon"
    assert not isinstance(request.prompt, Rendered)


def test_a_system_prompt_wants_a_template() -> None:
    program = ScriptedProgram(formatter=NoTemplate())
    result = program.run("generate", "hi", "--system", "be brief")
    assert result.exit_code == 1
    assert "the model has no chat template" in result.stderr
    assert program.prompts == []


def test_a_system_prompt_is_refused_with_a_raw_prompt() -> None:
    result = ScriptedProgram().run("generate", "hi", "--raw", "--system", "be brief")
    assert result.exit_code == 2
    assert "--system: goes with no --raw" in plain(result.stderr)


def test_a_dash_reads_the_prompt_from_stdin() -> None:
    program = ScriptedProgram()
    program.run("generate", "--raw", "-", input_text="two\nlines\n\n")
    assert program.prompts == ["two\nlines\n"]


def test_bytes_that_are_no_text_are_replaced() -> None:
    program = ScriptedProgram()
    result = program.run("generate", "--raw", "-", input_text=b"a\xffb")
    assert result.exit_code == 0
    assert program.prompts == ["a\ufffdb"]


def test_sampling_flags_reach_the_request() -> None:
    program = ScriptedProgram()
    arguments = "--greedy --seed 18446744073709551615 --stop a --stop b --min-p 0.25 "
    arguments += "--repetition-penalty 1.5 --presence-penalty -1 --frequency-penalty 2"
    result = program.run("generate", "hi", *arguments.split())
    assert result.exit_code == 0, result.stderr
    assert program.generator.requests[0].sampling == SamplingParams(
        greedy=True,
        seed=2**64 - 1,
        stop=("a", "b"),
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
    )


def test_what_is_not_asked_for_is_left_to_the_settings() -> None:
    program = ScriptedProgram()
    program.run("generate", "hi", "--temperature", "0.5", "--max-new-tokens", "9")
    assert program.generator.requests[0].sampling == SamplingParams()
    assert program.configs[0].temperature == 0.5
    assert program.configs[0].max_new_tokens == 9


def test_a_bad_wish_is_refused_before_the_model_is_loaded() -> None:
    program = ScriptedProgram()
    result = program.run("generate", "hi", "--seed", "-1")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: seed: got -1, allowed is an integer from 0 to 18446744073709551615\n"
    )
    assert program.configs == []


def test_json_prints_one_object_and_nothing_else() -> None:
    program = ScriptedProgram("Hel", "l\u00f6\n")
    result = program.run("generate", "hi", "--json")
    assert result.stderr == ""
    assert json.loads(result.stdout) == {
        "text": "Hell\u00f6\n",
        "token_ids": [0, 1],
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "finish_reason": "stop",
        "seed": 7,
    }
    assert not program.generator.requests[0].streaming


def test_json_holds_every_bit_of_the_log_probabilities() -> None:
    (float32,) = struct.unpack("f", struct.pack("f", -0.1))
    bare = TokenLogprob(token_id=9, token_bytes=b"\xc3\xa9", logprob=float32)
    chunk = Chunk(
        text="\u00e9",
        token_ids=(9,),
        usage=Usage(prompt_tokens=1, completion_tokens=1),
        logprobs=(dataclasses.replace(bare, top=(bare,)),),
        finish_reason=FinishReason.LENGTH,
        seed=1,
    )
    program = ScriptedProgram(answers=ChunkGenerator([chunk]))
    result = program.run("generate", "hi", "--json", "--logprobs", "1")
    entry = {"token_id": 9, "token": "\u00e9", "bytes": [195, 169], "logprob": float32}
    assert json.loads(result.stdout)["logprobs"] == [{**entry, "top": [entry]}]


def test_log_probabilities_are_asked_for() -> None:
    program = ScriptedProgram()
    program.run("generate", "hi", "--json", "--logprobs", "4")
    assert program.generator.requests[0].sampling.logprobs == 4


def test_log_probabilities_of_no_others_have_no_list_of_them() -> None:
    result = ScriptedProgram("a").run("generate", "hi", "--json", "--logprobs", "0")
    (entry,) = json.loads(result.stdout)["logprobs"]
    assert set(entry) == {"token_id", "token", "bytes", "logprob"}


def test_log_probabilities_want_json() -> None:
    result = ScriptedProgram().run("generate", "hi", "--logprobs", "1")
    assert result.exit_code == 2
    assert "--logprobs: needs --json" in plain(result.stderr)


def test_quiet_prints_the_answer_alone() -> None:
    result = ScriptedProgram("Hello").run("generate", "hi", "-q")
    assert (result.stdout, result.stderr) == ("Hello\n", "")


def test_escape_sequences_of_an_answer_are_left_in_it() -> None:
    result = ScriptedProgram("\x1b[31mred").run("generate", "hi")
    assert result.stdout == "\x1b[31mred\n"


@pytest.mark.parametrize(
    "error", [ServerFull("full", 3), InvalidRequest("prompt", "a", "b")]
)
def test_an_error_of_the_generator_is_one_line(error: Exception) -> None:
    program = ScriptedProgram()
    program.generator.fail = lambda: error
    result = program.run("generate", "hi")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {error}\n"


def test_a_receipt_is_written_to_a_file(tmp_path: Path) -> None:
    program, file = ScriptedProgram("Hello"), tmp_path / "receipt.json"
    result = program.run("generate", "hi", "-q", "--receipt", str(file))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello\n", "")
    receipt = Receipt.from_json(json.loads(file.read_text()))
    assert receipt.answer == Outcome.of([0])


def test_without_a_file_for_it_no_receipt_is_asked_for() -> None:
    program = ScriptedProgram()
    program.run("generate", "hi")
    assert not program.generator.requests[0].receipt


def test_a_receipt_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    result = ScriptedProgram("a").run("generate", "hi", "--receipt", str(tmp_path))
    assert result.exit_code == 1
    assert f"error: receipt: got {tmp_path} (is a directory)" in result.stderr


def test_a_prompt_is_wanted() -> None:
    result = ScriptedProgram().run("generate")
    assert result.exit_code == 2
    assert "Missing argument" in plain(result.stderr)
