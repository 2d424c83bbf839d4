import dataclasses
from types import MappingProxyType

import pytest

from jaxserver.adapters.http.app import create_app
from jaxserver.ports.errors import NotReady
from jaxserver.ports.status import ServerState, StatusSnapshot
from tests.fakes import (
    ByteFormatter,
    ByteTokenizer,
    FixedStatus,
    ScriptedGenerator,
)
from tests.unit.adapters.http.in_process import app_of, get, post


@pytest.mark.parametrize("state", list(ServerState))
def test_status_says_everything_in_every_state(state: ServerState) -> None:
    response = get(app_of(state=state), "/status")

    snapshot = dataclasses.asdict(FixedStatus(state).snapshot())
    assert response.status_code == 200
    assert response.json() == {
        **snapshot,
        "state": state.value,
        "devices": ["cpu:0"],
    }


class ReadOnlyStatus(FixedStatus):
    def snapshot(self) -> StatusSnapshot:
        config = MappingProxyType({"mesh_axes_shape": (1, -1, 1), "slots": None})
        memory = MappingProxyType({"resident": 1})
        return dataclasses.replace(super().snapshot(), config=config, memory=memory)


def test_status_takes_any_mapping() -> None:
    status = get(app_of(status=ReadOnlyStatus()), "/status").json()
    assert status["config"] == {"mesh_axes_shape": [1, -1, 1], "slots": None}


@pytest.mark.parametrize("state", list(ServerState))
def test_ready_is_503_until_ready(state: ServerState) -> None:
    response = get(app_of(state=state), "/ready")
    if state is ServerState.READY:
        assert response.status_code == 200
    else:
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["error"]["code"] == "not_ready"


@pytest.mark.parametrize("state", list(ServerState))
def test_health_is_503_once_the_engine_is_dead(state: ServerState) -> None:
    response = get(app_of(state=state), "/health")
    assert response.status_code == (503 if state is ServerState.FAILED else 200)


def test_text_becomes_tokens_and_text_again() -> None:
    app = app_of()
    tokens = post(app, "/tokenize", {"text": "é"}).json()
    assert tokens == {"tokens": [256, 195, 169], "count": 3}
    plain = {"text": "é", "add_special_tokens": False}
    assert post(app, "/tokenize", plain).json()["tokens"] == [195, 169]
    text = post(app, "/detokenize", {"tokens": tokens["tokens"]}).json()
    assert text == {"text": "é"}


@pytest.mark.parametrize("tokens", [[258], [-1], [2**40], [True], ["a"], "a", None])
def test_tokens_outside_the_vocabulary_are_refused(tokens: object) -> None:
    response = post(app_of(), "/detokenize", {"tokens": tokens})
    assert response.status_code == 400
    assert response.json()["error"]["field"].startswith("tokens")


class LoadingTokenizer(ByteTokenizer):
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        raise NotReady("the model is loading", 3)


def test_a_tokenizer_that_is_not_there_yet_is_503() -> None:
    response = post(app_of(tokenizer=LoadingTokenizer()), "/tokenize", {"text": "a"})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "3"


def test_a_route_whose_port_is_not_given_is_not_there() -> None:
    app = create_app(ScriptedGenerator("x"), ByteFormatter())
    for path in ("/status", "/health", "/ready", "/metrics", "/v1/models"):
        assert get(app, path).status_code == 404
    for path in ("/tokenize", "/detokenize", "/profile"):
        assert post(app, path, {}).status_code == 404
    assert post(app, "/instruct", {"prompt": "p"}).status_code == 200
