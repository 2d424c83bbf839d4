import json
import math

import numpy as np

from jaxserver.adapters.http.openai_logprobs import (
    IMPOSSIBLE,
    TextLogprobsWriter,
    chat_logprobs,
)
from jaxserver.ports.types import TokenLogprob


def entry(
    token_id: int, token_bytes: bytes, logprob: float = -0.5, *top: TokenLogprob
) -> TokenLogprob:
    return TokenLogprob(
        token_id=token_id, token_bytes=token_bytes, logprob=logprob, top=top
    )


def test_chat_logprobs_have_an_entry_for_every_token_the_end_included() -> None:
    written = chat_logprobs(
        [entry(1, b"a", -0.5, entry(2, b"b", -0.25)), entry(0, b"")]
    )

    assert written is not None
    assert written.model_dump()["content"] == [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [{"token": "b", "logprob": -0.25, "bytes": [98]}],
        },
        {"token": "", "logprob": -0.5, "bytes": [], "top_logprobs": []},
    ]


def test_nothing_is_written_where_nothing_was_asked() -> None:
    assert chat_logprobs(None) is None
    assert TextLogprobsWriter().write(None) is None


def test_logprobs_keep_every_digit_of_a_float32() -> None:
    values = [float(np.float32(x)) for x in (-0.1, -1 / 3, -1e-30, -17.000001)]
    written = chat_logprobs([entry(1, b"a", value) for value in values])
    assert written is not None
    read = json.loads(written.model_dump_json())["content"]
    assert [token["logprob"] for token in read] == values


def test_minus_infinity_is_written_as_a_number() -> None:
    written = chat_logprobs([entry(1, b"a", -math.inf)])
    assert written is not None
    assert written.content[0].logprob == IMPOSSIBLE


def test_text_offsets_count_characters_across_pieces_and_split_characters() -> None:
    writer = TextLogprobsWriter()
    first = writer.write([entry(1, b"a"), entry(2, "é".encode()[:1])])
    second = writer.write([entry(3, "é".encode()[1:]), entry(4, b"bc"), entry(0, b"")])
    assert first is not None
    assert second is not None
    assert [*first.text_offset, *second.text_offset] == [0, 1, 1, 2, 4]


def test_the_drawn_token_is_among_the_likeliest_and_equal_texts_are_kept() -> None:
    top = (entry(5, b"\xc3", -0.25), entry(6, b"\xa9", -1.0))
    written = TextLogprobsWriter().write([entry(7, b"x", -2.0, *top)])
    assert written is not None
    assert written.top_logprobs == [{"�": -0.25, "token_id:6": -1.0, "x": -2.0}]
    assert written.tokens == ["x"]


def test_a_drawn_token_that_is_likeliest_stands_there_once() -> None:
    written = TextLogprobsWriter().write([entry(5, b"x", -0.5, entry(5, b"x", -0.5))])
    assert written is not None
    assert written.top_logprobs == [{"x": -0.5}]
