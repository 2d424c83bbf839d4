"""What llama.cpp foretells of a text, as its own `llama-perplexity` writes it down.

Its file has a word that says what it is; the length of a window, the size of the
vocabulary and the number of windows; all tokens; and then a row of 16-bit numbers for
each token of a window's second half but the last. The first four are two float32, a
step and the lowest log-probability; the others are steps above that.
"""

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.foretold import Foretold, HostArray, joined

PROGRAM = "llama-perplexity"
WORD = b"_logits_"
BEFORE = 4
"""Of the 16-bit numbers of a row, those before the vocabulary's."""
DEPTH = 16.0
"""It counts no token as further below the likeliest one, in log-probability."""


def foretell(
    program: str, model: Path, text: str, window: int, windows: int
) -> Foretold:
    """Runs the first windows of a text."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "text", Path(folder) / "logprobs"
        asked.write_text(text)
        command = [
            *(program, "--model", str(model), "--file", str(asked)),
            *("--ctx-size", str(window), "--chunks", str(windows)),
            *("--threads", str(os.cpu_count() or 1)),
            *("--save-all-logits", str(answer)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode or not answer.exists():
            raise SystemExit(f"{program} failed: {done.stderr[-500:]}")
        return read(answer)


def read(file: Path) -> Foretold:
    with file.open("rb") as stream:
        if stream.read(len(WORD)) != WORD:
            raise SystemExit(f"{PROGRAM} wrote another kind of file")
        window, vocab, windows = np.fromfile(stream, np.int32, 3).tolist()
        tokens = np.fromfile(stream, np.int32, windows * window)
        begins = stream.tell()
    first = window // 2
    ahead = tokens.reshape(windows, window)[:, first + 1 :]
    width = BEFORE + vocab + vocab % 2
    rows = np.memmap(file, np.uint16, "r", offset=begins, shape=(*ahead.shape, width))
    return joined([foretold(*each, vocab) for each in zip(rows, ahead, strict=True)])


def foretold(rows: HostArray, tokens: HostArray, vocab: int) -> Foretold:
    """What the rows of a window have for the tokens that come after each."""
    step, lowest = np.ascontiguousarray(rows[:, :BEFORE]).view(np.float32).T
    steps = rows[:, BEFORE : BEFORE + vocab]
    given = lowest + step * steps[np.arange(len(tokens)), tokens]
    return Foretold(tokens, given, steps.argmax(axis=-1))
