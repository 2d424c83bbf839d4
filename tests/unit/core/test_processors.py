import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from jaxserver.core import processors
from jaxserver.core.processors import Processing, Wishes
from jaxserver.core.sampling_arrays import History
from jaxserver.ports.errors import InvalidConfig
from jaxserver.ports.processors import LogitsProcessor
from tests.processors import PROCESSORS, VOCAB, no_token_twice

ANSWER = (7, 9, 7, 200, 3)


def rows(*asked: dict[str, dict[str, float]]) -> Wishes:
    each = [processors.wishes_of(PROCESSORS, one) for one in asked]
    stacked: Wishes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    return stacked


def histories(count: int, length: int) -> History:
    """Rows of a prompt of two tokens and a part of the answer."""
    tokens = jnp.zeros((count, 16), jnp.int32).at[:, 2:7].set(jnp.array(ANSWER))
    lengths = jnp.full(count, 2 + length, jnp.int32)
    return History(tokens, jnp.full(count, 2, jnp.int32), lengths)


BOTH: dict[str, dict[str, float]] = {"no_token_twice": {}, "drift": {"token": 5}}
WANTED = jnp.ones(2, jnp.bool_)


def test_a_state_made_again_from_an_answer_is_the_one_that_heard_it() -> None:
    wishes = rows(BOTH, {"drift": {"step": 3.5}})
    states = processors.begin(PROCESSORS, wishes, histories(2, 0), WANTED)
    for nth, token in enumerate(ANSWER, 1):
        asked = Processing(PROCESSORS, wishes, states)
        states = processors.update(asked, jnp.full(2, token, jnp.int32), WANTED)
        again = processors.begin(PROCESSORS, wishes, histories(2, nth), WANTED)
        for name, wish in wishes.items():
            wanted = np.flatnonzero(wish.is_wanted)
            for heard, made in zip(
                jax.tree.leaves(states[name]), jax.tree.leaves(again[name]), strict=True
            ):
                np.testing.assert_array_equal(heard[wanted], made[wanted])


def test_a_row_that_is_not_chosen_hears_nothing() -> None:
    wishes = rows(BOTH, BOTH)
    before = processors.begin(PROCESSORS, wishes, histories(2, 3), WANTED)
    chosen = jnp.array([True, False])
    asked = Processing(PROCESSORS, wishes, before)
    after = processors.update(asked, jnp.full(2, 8, jnp.int32), chosen)
    assert after["no_token_twice"][0, 8]
    assert not after["no_token_twice"][1, 8]
    np.testing.assert_array_equal(after["drift"]["by"][1], before["drift"]["by"][1])


def test_a_row_gets_the_steps_it_asked_for_and_no_others() -> None:
    logits = jnp.arange(VOCAB, dtype=jnp.float32)
    one = processors.wishes_of(PROCESSORS, {"no_token_twice": {}})
    seen = jnp.zeros(VOCAB, jnp.bool_).at[VOCAB - 1].set(True)
    drifted = {"token": jnp.int32(3), "step": jnp.float32(1), "by": jnp.float32(1e6)}
    states = {"no_token_twice": seen, "drift": drifted}
    changed = processors.apply(Processing(PROCESSORS, one, states), logits)
    assert changed[VOCAB - 1] == -jnp.inf
    np.testing.assert_array_equal(changed[:-1], logits[:-1])


def test_a_parameter_is_of_its_defaults_type() -> None:
    wish = processors.wishes_of(PROCESSORS, {"drift": {"step": 2, "token": 9}})["drift"]
    assert wish.params["step"].dtype == np.float32
    assert wish.params["token"].dtype == np.int32


def _branches(state: Array, logits: Array) -> Array:
    return logits if logits[0] > 0 else -logits


@pytest.mark.parametrize(
    ("processor", "says"),
    [
        (
            LogitsProcessor(
                init=lambda params: jnp.zeros(()),
                update=lambda state, token: state,
                apply=_branches,
            ),
            "Tracer",
        ),
        (
            LogitsProcessor(
                init=lambda params: jnp.zeros(()),
                update=lambda state, token: token,
                apply=lambda state, logits: logits,
            ),
            "update",
        ),
        (
            LogitsProcessor(
                init=lambda params: jnp.zeros(()),
                update=lambda state, token: state,
                apply=lambda state, logits: logits[:-1],
            ),
            "apply",
        ),
        ("no processor", "no LogitsProcessor"),
    ],
)
def test_one_that_cannot_be_traced_is_refused_by_its_name(
    processor: LogitsProcessor, says: str
) -> None:
    with pytest.raises(InvalidConfig, match=rf"logits_processors: got mine.*{says}"):
        processors.check({"other": no_token_twice(), "mine": processor}, VOCAB)
