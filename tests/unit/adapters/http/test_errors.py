import pytest
from fastapi import FastAPI

from jaxserver.adapters.http.errors import failure_of
from jaxserver.ports.errors import BrokenCheckpoint, InvalidRequest, Unavailable
from tests.unit.adapters.http.in_process import app_of, call, get, post


@pytest.mark.parametrize("path", ["/nowhere", "/docs", "/redoc"])
def test_an_unknown_path_is_404_in_our_form(path: str) -> None:
    response = get(app_of(), path)
    assert response.status_code == 404
    expected = {"code": "not_found", "message": "Not Found", "field": None}
    assert response.json() == {"error": expected}


def test_an_unknown_path_below_v1_is_404_in_openais_form() -> None:
    response = get(app_of(), "/v1/nowhere")
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert response.json()["error"]["param"] is None


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/chat"), ("DELETE", "/v1/completions"), ("POST", "/status")],
)
def test_a_wrong_method_is_405_and_names_the_right_one(method: str, path: str) -> None:
    response = call(app_of(), method, path)
    assert response.status_code == 405
    assert response.headers["allow"]
    assert response.json()["error"]["code"] == "method_not_allowed"


def test_an_application_mounted_in_another_keeps_its_forms() -> None:
    outer = FastAPI()
    outer.mount("/llm", app_of())
    assert "param" in get(outer, "/llm/v1/nowhere").json()["error"]
    assert "field" in post(outer, "/llm/chat", {}).json()["error"]


def test_a_refusal_says_what_is_allowed_and_not_what_came() -> None:
    failure = failure_of(InvalidRequest("top_k", "'secret'", "0 or more"), "/chat")
    assert failure.message == "top_k: allowed is 0 or more"
    assert (failure.status, failure.field) == (400, "top_k")


def test_what_a_client_cannot_act_on_is_not_told() -> None:
    error = BrokenCheckpoint("/secret/path", None, expected="a", found="b")
    failure = failure_of(error, "/chat")
    assert failure.status == 500
    assert "secret" not in failure.message


def test_any_other_unavailability_may_be_tried_again() -> None:
    failure = failure_of(Unavailable("later", 9), "/chat")
    assert failure.status == 503
    assert failure.headers == {"Retry-After": "9"}


def test_a_frameworks_own_validation_answers_in_our_form() -> None:
    app = app_of()

    @app.get("/number")
    async def number(value: int) -> int:
        return value

    response = get(app, "/number?value=secret")
    assert response.status_code == 400
    assert response.json()["error"]["field"] == "query.value"
    assert "secret" not in response.text
