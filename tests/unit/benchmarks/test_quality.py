import argparse
import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks import llama_perplexity, quality
from benchmarks.foretold import Foretold, HostArray, joined, since
from benchmarks.foretold import quality as compared
from tests.fakes import ByteTokenizer


def foretold(tokens: list[int], logprobs: list[float], best: list[int]) -> Foretold:
    return Foretold(np.array(tokens), np.array(logprobs), np.array(best))


def test_two_ways_are_compared_token_by_token() -> None:
    other = foretold([1, 2, 3, 4], [-1.0, -2.0, -3.0, -2.0], [1, 2, 3, 4])
    found = foretold([1, 2, 3, 4], [-1.1, -2.1, -2.9, -2.1], [1, 2, 0, 4])
    result = compared(found, other)
    assert result.tokens == 4
    assert result.perplexity == pytest.approx(np.exp(8.2 / 4))
    assert result.more == pytest.approx(np.exp(0.2 / 4) - 1)
    assert result.more_error == pytest.approx(np.exp(0.05) * 0.1 / 2)
    assert (result.agreement, result.agreement_error) == (0.75, 0.25)
    assert quality.row("int8", result) == (
        *("int8", "7.7679", "+5.127% ± 5.256%", "75.00% ± 25.00%"),
    )


def test_other_tokens_are_not_compared() -> None:
    with pytest.raises(SystemExit, match="not the same"):
        compared(foretold([1], [-1.0], [1]), foretold([2], [-1.0], [1]))


def test_the_second_half_of_a_window_counts() -> None:
    whole = joined([foretold([1, 2], [-1, -2], [1, 1]), foretold([3], [-3], [1])])
    counted = since(whole, 2)
    assert counted.tokens.tolist() == [3]
    assert counted.logprobs.tolist() == [-3]


def test_a_window_is_as_many_tokens_as_are_asked_for() -> None:
    args = argparse.Namespace(tokens=11, window=4)
    tokens = quality.windows(ByteTokenizer(), "abcdefghij", args)
    assert tokens.tolist() == [[256, *b"abc"], [256, *b"efg"]]
    with pytest.raises(SystemExit, match="no 11 tokens in windows of 4"):
        quality.windows(ByteTokenizer(), "abc", args)


def written(file: Path, window: int, vocab: int, logprobs: HostArray) -> HostArray:
    """As llama.cpp writes log-probabilities of the second halves of windows."""
    windows = len(logprobs)
    tokens = np.arange(windows * window, dtype=np.int32) % vocab
    with file.open("wb") as stream:
        stream.write(b"_logits_" + struct.pack("<iii", window, vocab, windows))
        tokens.tofile(stream)
        for row in logprobs.reshape(-1, vocab):
            lowest = row.min()
            step = (row.max() - lowest) / 65535
            stream.write(struct.pack("<ff", step, lowest))
            steps = np.rint((row - lowest) / step).astype(np.uint16)
            np.pad(steps, (0, vocab % 2)).tofile(stream)
    return tokens.reshape(windows, window)


@pytest.mark.parametrize("vocab", [6, 7])
def test_what_llama_cpp_wrote_is_read(tmp_path: Path, vocab: int) -> None:
    rng = np.random.default_rng(0)
    logprobs = -rng.uniform(0, 9, (2, 3, vocab))  # a window of 8 counts 3 of them
    tokens = written(tmp_path / "file", 8, vocab, logprobs)
    found = llama_perplexity.read(tmp_path / "file")
    assert found.tokens.tolist() == tokens[:, 5:].ravel().tolist()
    expected = np.take_along_axis(logprobs, tokens[:, 5:, None], -1).ravel()
    np.testing.assert_allclose(found.logprobs, expected, atol=2e-4)
    assert found.best.tolist() == logprobs.argmax(-1).ravel().tolist()


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"GGUF")
    with pytest.raises(SystemExit, match="another kind of file"):
        llama_perplexity.read(tmp_path / "file")
