"""A pseudo-terminal with the command line running in it.

As a script it takes its terminal's file descriptor, the name of a scene and arguments.
"""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from jaxserver.ports.errors import PromptTooLong
from jaxserver.ports.types import GenerationRequest
from tests.fakes import ScriptedGenerator, ScriptedStream
from tests.unit.adapters.cli.scripted import ScriptedProgram

ROOT = Path(__file__).parents[4]
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """What a person sees and types."""

    def __init__(self, scene: str, *arguments: str) -> None:
        self._ours, theirs = os.openpty()
        command = [sys.executable, "-m", __name__, str(theirs), scene, *arguments]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            pass_fds=[theirs],
            cwd=ROOT,
            env=environment,
        )
        os.close(theirs)
        self._seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def read_until(self, text: str, seconds: float = 30) -> str:
        """All that was shown since the last call, up to and with `text`."""
        deadline = time.monotonic() + seconds
        while text not in self._seen:
            piece = self._read(deadline - time.monotonic())
            assert piece, f"{text!r} did not come, but {self._seen!r}"
            self._seen += piece
        before, self._seen = self._seen.split(text, 1)
        return before + text

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self, seconds: float = 30, again: str = "") -> tuple[int, str]:
        """The exit code, and what was shown before.

        A key that is to be pressed `again` is, as a person would, after five seconds:
        Python's `input` may miss the interrupt that comes just as its prompt appears.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if piece := self._read(min(left, 5)):
                self._seen += piece
            elif self._process.poll() is not None:
                break
            elif again:
                self.type(again)
        return self._process.wait(seconds), self._seen

    def _read(self, seconds: float) -> str:
        """Nothing at the end, or when the time is up."""
        if not select.select([self._ours], [], [], max(seconds, 0))[0]:
            return ""
        try:
            return os.read(self._ours, 4096).decode(errors="replace")
        except OSError:  # Linux says so when the other side is closed
            return ""


class Stubborn:
    """A generator whose answers cannot be cancelled."""

    def __init__(self, generator: ScriptedGenerator) -> None:
        self._generator = generator

    def generate(self, request: GenerationRequest) -> ScriptedStream:
        stream = self._generator.generate(request)
        stream.cancel = lambda: None  # type: ignore[method-assign]  # it is stubborn
        return stream


def play(scene: str, arguments: list[str]) -> int:
    """Runs the command line and shows its prompts at the end."""
    program = ScriptedProgram(*(f"word{i} " for i in range(1000)))
    program.generator.chunk_seconds = 0.02
    if scene == "too long":
        program.generator.fail = lambda: PromptTooLong(9, 8)
    if scene == "stubborn":
        program.answers = Stubborn(program.generator)
    try:
        program.application()(arguments, prog_name="jaxserver")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        print(f"prompts: {program.prompts}")  # noqa: T201  # for the test to read
    return 0


if __name__ == "__main__":
    os.login_tty(int(sys.argv[1]))
    # Where the tests run in the background, their children may be told to ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(play(sys.argv[2], sys.argv[3:]))
