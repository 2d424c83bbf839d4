import subprocess
import sys

from tests.unit.adapters.cli.terminal import CTRL_C, CTRL_D, ROOT, Terminal


def test_ctrl_c_stops_an_answer_with_what_came() -> None:
    with Terminal("plain", "generate", "hi") as terminal:
        terminal.read_until("word3 ")
        terminal.type(CTRL_C)
        code, shown = terminal.end()
    assert code == 130
    assert "seed 0, cancelled" in shown
    assert "word999" not in shown
    assert "Traceback" not in shown


def test_ctrl_c_twice_ends_a_program_that_does_not_stop() -> None:
    with Terminal("stubborn", "generate", "hi") as terminal:
        terminal.read_until("word3 ")
        terminal.type(CTRL_C)
        terminal.read_until("word9 ")
        terminal.type(CTRL_C)
        code, shown = terminal.end()
    assert code == 130
    assert "cancelled" not in shown
    assert "Traceback" not in shown


def test_a_conversation_goes_on_after_ctrl_c_and_keeps_what_came() -> None:
    with Terminal("plain", "chat") as terminal:
        assert "/clear forgets the conversation" in terminal.read_until("> ")
        terminal.type("one\n")
        terminal.read_until("word2 ")
        terminal.type(CTRL_C)
        terminal.read_until("cancelled")
        terminal.read_until("> ")
        terminal.type("two\n")
        terminal.read_until("word2 ")
        terminal.type(CTRL_C)
        terminal.read_until("> ")
        terminal.type(CTRL_C)
        code, shown = terminal.end(again=CTRL_C)
    assert code == 130
    assert "user: one\\nassistant: word0 word1 word2 " in shown
    assert "\\nuser: two\\nassistant: " in shown
    assert "Traceback" not in shown


def test_ctrl_d_at_the_prompt_ends_a_conversation() -> None:
    with Terminal("plain", "chat", "--quiet") as terminal:
        assert "/clear" not in terminal.read_until("> ")
        terminal.type(CTRL_D)
        code, _ = terminal.end()
    assert code == 0


def test_a_conversation_that_got_too_long_may_begin_anew() -> None:
    with Terminal("too long", "chat") as terminal:
        terminal.read_until("> ")
        terminal.type("one\n")
        terminal.read_until("leave room for an answer; /clear begins anew")
        terminal.read_until("> ")
        terminal.type("two\n")
        terminal.read_until("/clear begins anew")
        terminal.read_until("> ")
        terminal.type(CTRL_D)
        code, shown = terminal.end()
    assert code == 0
    assert "prompts: ['user: one\\nassistant: ', 'user: two\\nassistant: ']" in shown


def test_loading_shows_a_bar() -> None:
    with Terminal("plain", "generate", "hi") as terminal:
        before = terminal.read_until("word0 ")
    assert "load" in before
    assert "5 bytes of 10 bytes" in before


def test_loading_is_silent_when_asked_to_be() -> None:
    with Terminal("plain", "generate", "hi", "--quiet") as terminal:
        before = terminal.read_until("word0 ")
    assert before == "word0 "


def test_a_reader_that_leaves_ends_the_program_quietly() -> None:
    script = (
        "from tests.unit.adapters.cli.scripted import ScriptedProgram\n"
        "pieces = ['word ' * 1000] * 1000\n"
        "ScriptedProgram(*pieces).application()(['generate', 'hi'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"word"
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
        assert process.wait(30) == 1
    assert errors == b""
