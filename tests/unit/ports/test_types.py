import copy
import dataclasses
import pickle
from typing import Any

import pytest

from jaxserver.ports.errors import InvalidRequest
from jaxserver.ports.types import (
    MAX_END_IDS,
    MAX_LOGIT_BIAS,
    MAX_SEED,
    MAX_STOP_STRINGS,
    MAX_TOP_LOGPROBS,
    Chunk,
    FinishReason,
    GenerationRequest,
    Message,
    SamplingParams,
    TokenLogprob,
    Usage,
)

LARGEST = 2**31 - 1
NAN, INFINITY = float("nan"), float("inf")
STOP = "at most 16 strings, none of them empty"
END_IDS = "at most 16 token ids"
BIAS = "at most 1024 token ids, each with a number from -100 to 100"
EVERYTHING = SamplingParams(
    greedy=True,
    temperature=0.5,
    top_k=3,
    top_p=0.25,
    min_p=0.125,
    repetition_penalty=1.5,
    presence_penalty=0.5,
    frequency_penalty=-0.5,
    logit_bias={5: 1.5, 7: -100},
    seed=MAX_SEED,
    max_new_tokens=9,
    stop=("a", "b"),
    stop_token_ids=(1, 2),
    ignore_eos=True,
    logprobs=20,
)
NUMBERS: dict[str, tuple[list[Any], list[Any], str]] = {
    "temperature": (
        [None, 0, 0.5, 100],
        [-1, 100.5, NAN, INFINITY, True, "1"],
        "a number from 0 to 100",
    ),
    "top_k": (
        [None, 0, LARGEST],
        [-1, LARGEST + 1, 1.0, True, "1"],
        f"an integer from 0 to {LARGEST}",
    ),
    "top_p": ([None, 0, 1.0], [-0.5, 1.5, NAN, False], "a number from 0 to 1"),
    "min_p": ([0, 1], [None, -0.5, 1.5, NAN], "a number from 0 to 1"),
    "repetition_penalty": (
        [0.01, 100],
        [None, 0, -1, 101, NAN],
        "a number from 0.01 to 100",
    ),
    "presence_penalty": (
        [-100, 100.0],
        [None, -101, 101, NAN],
        "a number from -100 to 100",
    ),
    "frequency_penalty": (
        [-100.0, 100],
        [None, -101, 101, "0"],
        "a number from -100 to 100",
    ),
    "seed": (
        [None, 0, 2**64 - 1],
        [-1, 2**64, 0.0, True, "7"],
        "an integer from 0 to 18446744073709551615",
    ),
    "max_new_tokens": (
        [None, 0, 1, LARGEST],
        [-1, LARGEST + 1, 1.5, True],
        f"an integer from 0 to {LARGEST}",
    ),
    "logprobs": ([None, 0, 20], [-1, 21, True, 0.5], "an integer from 0 to 20"),
}
OTHERS: dict[str, tuple[list[Any], list[tuple[Any, str]], str]] = {
    "stop": (
        [(), ("a",), ["a", "b"], ("a",) * 16],
        [
            ("a", "'a'"),
            (None, "None"),
            ({"a"}, "{'a'}"),
            (("",), "''"),
            (("a", 1), "1"),
            (("a",) * 17, "17 strings"),
            (("a", None), "None"),
        ],
        STOP,
    ),
    "stop_token_ids": (
        [(), (0,), [1, LARGEST], (5,) * 16],
        [
            (5, "5"),
            (None, "None"),
            ((-1,), "-1"),
            ((2**31,), "2147483648"),
            ((1.0,), "1.0"),
            ((True,), "True"),
            ((1,) * 17, "17 ids"),
        ],
        END_IDS,
    ),
    "logit_bias": (
        [{}, {0: -100, LARGEST: 100.0}, dict.fromkeys(range(1024), 1)],
        [
            ([], "[]"),
            (None, "None"),
            ({"5": 1.0}, "'5': 1.0"),
            ({-1: 1.0}, "-1: 1.0"),
            ({True: 1.0}, "True: 1.0"),
            ({5: 101}, "5: 101"),
            ({5: NAN}, "5: nan"),
            ({5: -INFINITY}, "5: -inf"),
            ({5: True}, "5: True"),
            ({5: "1"}, "5: '1'"),
            (dict.fromkeys(range(1025), 1), "1025 entries"),
        ],
        BIAS,
    ),
    "logits_processors": (
        [{}, {"a": {}}, {"a": {"size": 1, "by": 0.5, "on": True}}],
        [
            ([], "[]"),
            (None, "None"),
            ({5: {}}, "5: {}"),
            ({"a": 1}, "'a': 1"),
            ({"a": {"by": NAN}}, "'a': {'by': nan}"),
            ({"a": {"by": "1"}}, "'a': {'by': '1'}"),
        ],
        "at most 16 names, each with parameters that are numbers",
    ),
}
ACCEPTED = [(name, v) for name, rule in NUMBERS.items() for v in rule[0]] + [
    (name, v) for name, rule in OTHERS.items() for v in rule[0]
]
REFUSED = [(name, v, repr(v), r[2]) for name, r in NUMBERS.items() for v in r[1]] + [
    (name, v, got, r[2]) for name, r in OTHERS.items() for v, got in r[1]
]


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**fields)


def test_by_default_nothing_is_asked_for() -> None:
    fields = {
        field.name: getattr(SamplingParams(), field.name)
        for field in dataclasses.fields(SamplingParams)
    }
    assert fields == {
        "greedy": False,
        "temperature": None,
        "top_k": None,
        "top_p": None,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "logits_processors": {},
        "seed": None,
        "max_new_tokens": None,
        "stop": (),
        "stop_token_ids": (),
        "ignore_eos": False,
        "logprobs": None,
    }


def test_the_limits_are_those_of_the_closed_list_of_executables() -> None:
    assert MAX_SEED == 2**64 - 1
    limits = (MAX_STOP_STRINGS, MAX_END_IDS, MAX_LOGIT_BIAS, MAX_TOP_LOGPROBS)
    assert limits == (16, 16, 1024, 20)


@pytest.mark.parametrize(("name", "value"), ACCEPTED)
def test_a_wish_that_fits_is_taken(name: str, value: object) -> None:
    wanted = tuple(value) if isinstance(value, list) else value
    assert getattr(params(**{name: value}), name) == wanted


@pytest.mark.parametrize(("name", "value", "got", "allowed"), REFUSED)
def test_a_wish_that_does_not_fit_is_refused_by_name(
    name: str, value: object, got: str, allowed: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        params(**{name: value})
    error = caught.value
    assert str(error) == f"{name}: got {got}, allowed is {allowed}"
    assert (error.field, error.got, error.allowed) == (name, got, allowed)


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(InvalidRequest) as caught:
        params(stop="x" * 1000)
    assert caught.value.got == "'" + "x" * 36 + "..."


def test_wishes_do_not_change_with_what_they_were_made_of() -> None:
    bias, stop = {5: 1.0}, ["a"]
    wishes = params(logit_bias=bias, stop=stop)
    bias[6] = 2.0
    stop.append("b")
    assert wishes.logit_bias == {5: 1.0}
    assert wishes.stop == ("a",)


def test_wishes_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EVERYTHING.seed = 1  # type: ignore[misc]  # the point of the test
    with pytest.raises(TypeError):
        EVERYTHING.logit_bias[1] = 1.0  # type: ignore[index]  # the point of the test


@pytest.mark.parametrize("wishes", [SamplingParams(), EVERYTHING])
def test_wishes_survive_pickling_and_copying(wishes: SamplingParams) -> None:
    assert pickle.loads(pickle.dumps(wishes)) == wishes
    assert copy.deepcopy(wishes) == wishes
    assert dataclasses.replace(wishes) == wishes


def test_a_changed_copy_is_checked_too() -> None:
    with pytest.raises(InvalidRequest, match="seed"):
        dataclasses.replace(EVERYTHING, seed=-1)


@pytest.mark.parametrize("prompt", ["text", (1, 2, 3)])
def test_a_request_survives_pickling(prompt: str | tuple[int, ...]) -> None:
    request = GenerationRequest(prompt=prompt, sampling=EVERYTHING, truncate=True)
    assert pickle.loads(pickle.dumps(request)) == request


def test_a_request_asks_for_as_little_as_it_can() -> None:
    request = GenerationRequest(prompt="a")
    assert request.sampling == SamplingParams()
    assert (request.truncate, request.streaming) == (False, True)


def test_a_chunk_survives_pickling() -> None:
    usage = Usage(prompt_tokens=1, completion_tokens=2)
    entry = TokenLogprob(token_id=1, token_bytes=b"\xff", logprob=-0.5)
    chunk = Chunk(
        text="a",
        token_ids=(1,),
        usage=usage,
        logprobs=(dataclasses.replace(entry, top=(entry,)),),
        finish_reason=FinishReason.STOP,
        seed=3,
    )
    assert pickle.loads(pickle.dumps(chunk)) == chunk
    assert usage.prompt_tokens_dropped == 0


def test_a_chunk_in_the_middle_says_neither_reason_nor_seed() -> None:
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    chunk = Chunk(text="a", token_ids=(1,), usage=usage)
    assert (chunk.finish_reason, chunk.seed, chunk.logprobs) == (None, None, None)


def test_messages_are_values() -> None:
    message = Message(role="user", content="hi")
    assert message == Message(role="user", content="hi")
    assert len({message, Message(role="user", content="hi")}) == 1


def test_finish_reasons_have_the_words_of_the_wire() -> None:
    assert {reason.value for reason in FinishReason} == {"stop", "length", "cancelled"}
