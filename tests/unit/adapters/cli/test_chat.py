from jaxserver.ports.errors import PromptTooLong
from jaxserver.ports.prompt import Rendered
from tests.unit.adapters.cli.scripted import NoTemplate, ScriptedProgram


def test_every_line_is_answered_until_the_input_ends() -> None:
    program = ScriptedProgram("Hello", "!")
    result = program.run("chat", "--quiet", input_text="one\n\n  two\n")
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        "Hello!\nHello!\n",
        "",
    )
    assert not program.is_open


def test_the_conversation_is_remembered() -> None:
    program = ScriptedProgram("Hello", "!")
    program.run("chat", "--system", "be brief", input_text="one\ntwo\n")
    assert program.prompts == [
        "system: be brief\nuser: one\nassistant: ",
        "system: be brief\nuser: one\nassistant: Hello!\nuser: two\nassistant: ",
    ]
    assert all(isinstance(r.prompt, Rendered) for r in program.generator.requests)


def test_clear_forgets_the_conversation_but_not_the_system_prompt() -> None:
    program = ScriptedProgram()
    program.run("chat", "--system", "be brief", input_text="one\n/clear\ntwo\n")
    assert program.prompts[1] == "system: be brief\nuser: two\nassistant: "


def test_exit_ends_the_conversation() -> None:
    program = ScriptedProgram()
    result = program.run("chat", input_text="one\n/exit\ntwo\n")
    assert result.exit_code == 0
    assert len(program.prompts) == 1


def test_counts_go_to_stderr() -> None:
    result = ScriptedProgram("Hello").run("chat", input_text="one\n")
    assert result.stdout == "Hello\n"
    assert result.stderr.startswith("3 prompt tokens, 1 tokens in ")


def test_sampling_flags_hold_for_every_answer() -> None:
    program = ScriptedProgram()
    arguments = ("--seed", "5", "--stop", "\n")
    program.run("chat", *arguments, input_text="one\ntwo\n")
    wishes = [request.sampling for request in program.generator.requests]
    assert [(wish.seed, wish.stop) for wish in wishes] == [(5, ("\n",))] * 2


def test_through_a_pipe_an_error_ends_the_program() -> None:
    program = ScriptedProgram()
    program.generator.fail = lambda: PromptTooLong(9, 8)
    result = program.run("chat", input_text="one\ntwo\n")
    assert result.exit_code == 1
    assert result.stderr == f"error: {PromptTooLong(9, 8)}\n"
    assert len(program.prompts) == 1


def test_a_conversation_wants_a_template() -> None:
    result = ScriptedProgram(formatter=NoTemplate()).run("chat", input_text="one\n")
    assert result.exit_code == 1
    assert "the model has no chat template" in result.stderr
