"""Properties of a model's answers that its user may rely on, for pytest to try."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxserver import JAXServer

PROMPTS = st.text("abcdefghijklmnopqrstuvwxyz ?", min_size=1, max_size=40)
SEEDS = st.integers(0, 2**64 - 1)
A_FEW = hypothesis.settings(max_examples=3, deadline=None)


@pytest.fixture(scope="session")
def server() -> Iterator[JAXServer]:
    server = JAXServer.load(config={"slots": 4, "max_length": 512})
    yield server
    server.end()


def answer(server: JAXServer, prompt: str, seed: int) -> str:
    pieces = server.process(prompt, max_new_tokens=8, temperature=1.0, seed=seed)
    *_, (text, _) = pieces
    return text


@A_FEW
@hypothesis.given(prompt=PROMPTS, seed=SEEDS)
def test_the_same_seed_gives_the_same_answer(
    server: JAXServer, prompt: str, seed: int
) -> None:
    assert answer(server, prompt, seed) == answer(server, prompt, seed)


@A_FEW
@hypothesis.given(prompts=st.lists(PROMPTS, min_size=4, max_size=4), seed=SEEDS)
def test_an_answer_is_the_same_in_company(
    server: JAXServer, prompts: list[str], seed: int
) -> None:
    alone = [answer(server, prompt, seed) for prompt in prompts]
    with ThreadPoolExecutor() as pool:
        together = pool.map(lambda prompt: answer(server, prompt, seed), prompts)
        assert list(together) == alone
