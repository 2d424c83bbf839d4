"""A receipt says all of itself as JSON, and names what is wrong with another's."""

import copy
import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserver.ports.config import SECRETS, ServerConfig
from jaxserver.ports.errors import InvalidRequest
from jaxserver.ports.receipt import (
    CONFIG_KEYS,
    Identity,
    Outcome,
    Receipt,
    request_again,
)
from jaxserver.ports.types import (
    MAX_CHOICES,
    MAX_SEED,
    SamplingParams,
    TokenLogprob,
)
from tests.strategies import sampling_params

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=5)
FLOATS = st.floats(width=32, allow_nan=False)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
TEXTS = st.text(max_size=9)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["fp16", "fp32"]),
        "slots": st.none() | st.integers(1, 256),
        "mesh_axes_shape": st.tuples(*[st.integers(1, 4)] * 3),
        "prefix_cache": st.booleans(),
    },
)
IDENTITIES = st.builds(
    Identity,
    model=TEXTS,
    weights=DIGESTS,
    settings=st.none() | DIGESTS,
    tokenizer=DIGESTS,
    template=st.none() | DIGESTS,
    config=CONFIGS,
    versions=st.dictionaries(TEXTS, TEXTS, max_size=3),
)
ENTRIES = st.builds(
    TokenLogprob,
    token_id=st.integers(0, 2**31 - 1),
    token_bytes=st.just(b""),
    logprob=FLOATS,
)


PARAMS = st.dictionaries(TEXTS, st.floats(-9, 9) | st.booleans(), max_size=2)
MANY = st.none() | st.lists(ENTRIES, max_size=3)


@st.composite
def receipts(draw: st.DrawFn) -> Receipt:
    chosen = dataclasses.replace(
        draw(sampling_params(9)),
        seed=draw(st.integers(0, MAX_SEED)),
        max_new_tokens=draw(st.integers(1, 2**31 - 1)),
        stop=tuple(draw(st.lists(st.text(min_size=1), max_size=3))),
        stop_token_ids=tuple(draw(IDS)),
        ignore_eos=draw(st.booleans()),
        logits_processors=draw(st.dictionaries(TEXTS, PARAMS, max_size=2)),
    )
    return Receipt(
        identity=draw(IDENTITIES),
        request=request_again(
            tuple(draw(IDS)),
            chosen,
            choice=draw(st.integers(0, MAX_CHOICES - 1)),
            score_prompt=chosen.logprobs is not None and draw(st.booleans()),
        ),
        end_ids=tuple(draw(IDS)),
        answer=Outcome.of(draw(IDS), draw(MANY), draw(MANY)),
    )


RECEIPT = Receipt(
    identity=Identity(
        model="m",
        weights="aa",
        settings="bb",
        tokenizer="cc",
        template=None,
        config={"slots": 4, "mesh_axes_shape": (1, 1, 1)},
        versions={"jax": "1"},
    ),
    request=request_again(
        (1, 2),
        SamplingParams(temperature=0.5, top_k=3, top_p=0.5, seed=7, max_new_tokens=9),
    ),
    end_ids=(0,),
    answer=Outcome.of([3, 4]),
)


@given(receipt=receipts())
def test_a_receipt_is_itself_again_after_json(receipt: Receipt) -> None:
    assert Receipt.from_json(json.loads(json.dumps(receipt.to_json()))) == receipt


@given(one=IDENTITIES, other=IDENTITIES)
def test_fingerprints_are_equal_where_all_is_and_only_there(
    one: Identity, other: Identity
) -> None:
    is_equal = one.fingerprint() == other.fingerprint()
    assert is_equal == (one.to_json() == other.to_json())
    assert one.fingerprint() == dataclasses.replace(one).fingerprint()
    assert one.fingerprint().startswith("fp_")


def test_it_holds_what_was_asked_for_and_every_default() -> None:
    written = RECEIPT.to_json()

    assert list(written) == [
        *("model", "weights", "settings", "tokenizer", "template", "config"),
        *("versions", "prompt_ids", "sampling", "answer"),
    ]
    names = {field.name for field in dataclasses.fields(SamplingParams)}
    assert set(written["sampling"]) == names | {"choice", "score_prompt", "end_ids"}
    assert written["sampling"]["seed"] == 7
    assert written["answer"]["ids"] == [3, 4]


def test_where_and_for_whom_it_was_served_is_no_part_of_it() -> None:
    private = {"host", "port", "model", "coordinator", "process_id"} | SECRETS
    assert set(CONFIG_KEYS) <= {f.name for f in dataclasses.fields(ServerConfig)}
    assert not private & set(CONFIG_KEYS)


@given(ids=IDS)
def test_the_digest_is_that_of_the_ids_in_four_bytes_each(ids: list[int]) -> None:
    packed = np.asarray(ids, "<u4").tobytes()
    assert Outcome.of(ids).digest == hashlib.sha256(packed).hexdigest()


@given(entries=st.lists(ENTRIES, min_size=1, max_size=3))
def test_one_bit_of_a_log_probability_changes_their_digest(
    entries: list[TokenLogprob],
) -> None:
    first, *rest = entries
    bits = np.float32(first.logprob).view(np.uint32) ^ np.uint32(1)
    other = dataclasses.replace(first, logprob=float(bits.view(np.float32)))
    among = dataclasses.replace(first, top=(other,))

    digests = {
        Outcome.of([], made).logprobs
        for made in (entries, [other, *rest], [among, *rest])
    }
    assert len(digests) == 3
    packed = np.asarray([(first.token_id, first.logprob)], "<u4, <f4").tobytes()
    alone = Outcome.of([], [first]).logprobs
    assert alone == hashlib.sha256(packed).hexdigest()


@pytest.mark.parametrize("name", RECEIPT.to_json())
def test_a_field_that_is_missing_is_named(name: str) -> None:
    written = RECEIPT.to_json()
    del written[name]
    with pytest.raises(InvalidRequest) as refusal:
        Receipt.from_json(written)
    assert refusal.value.field == name


WRONG: list[tuple[str, Any]] = [
    ("model", 3),
    ("weights", None),
    ("template", ["a"]),
    ("prompt_ids", "abc"),
    ("prompt_ids", [1, -1]),
    ("prompt_ids", [True]),
    ("config", []),
    ("config.port", 80),
    ("versions.jax", 1),
    ("sampling", None),
    ("sampling.seed", None),
    ("sampling.seed", 1.0),
    ("sampling.seed", 2**64),
    ("sampling.temperature", None),
    ("sampling.greedy", "no"),
    ("sampling.stop", "a"),
    ("sampling.logit_bias", {"a": 1}),
    ("sampling.logit_bias", {"1": "a"}),
    ("sampling.end_ids", None),
    ("sampling.choice", 128),
    ("sampling.score_prompt", 1),
    ("sampling.score_prompt", True),  # without log-probabilities
    ("sampling.logits_processors", {"a": 1}),
    ("sampling.temprature", 1.0),
    ("answer.ids", [2**31]),
    ("answer.digest", None),
    ("answer.logprobs", 1),
    ("answer.text", "a"),
    ("comment", "mine"),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=str)
def test_a_field_that_is_wrong_or_unknown_is_named(field: str, value: object) -> None:
    written = copy.deepcopy(RECEIPT.to_json())
    *stem, last = field.split(".")
    (written[stem[0]] if stem else written)[last] = value
    with pytest.raises(InvalidRequest) as refusal:
        Receipt.from_json(written)
    assert refusal.value.field == field


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
PLACES = [
    (name, key)
    for name, value in RECEIPT.to_json().items()
    for key in (None, *(value if isinstance(value, dict) else ()))
]


@given(place=st.sampled_from(PLACES), value=ANY_JSON)
def test_whatever_stands_in_a_field_it_is_read_or_refused_by_name(
    place: tuple[str, str | None], value: object
) -> None:
    written = copy.deepcopy(RECEIPT.to_json())
    name, key = place
    if key is None:
        written[name] = value
    else:
        written[name][key] = value
    read, refused_field = None, name
    try:
        read = Receipt.from_json(written)
    except InvalidRequest as refusal:
        refused_field = refusal.field
    assert refused_field.startswith(name)
    assert read is None or Receipt.from_json(read.to_json()) == read
