from collections.abc import Iterator
from typing import Any

import pytest

from jaxserver.ports.handlers import Handlers
from tests.unit.adapters.http.in_process import app_of, get

DESCRIPTION = get(app_of(), "/openapi.json").json()
POSTS = [
    "/chat",
    "/detokenize",
    "/instruct",
    "/profile",
    "/tokenize",
    "/v1/chat/completions",
    "/v1/completions",
]


def references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"]
        for part in schema.values():
            yield from references(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from references(part)


def body_schema(path: str) -> dict[str, Any]:
    body = DESCRIPTION["paths"][path]["post"]["requestBody"]
    assert body["required"]
    schema: dict[str, Any] = body["content"]["application/json"]["schema"]
    return schema


def test_every_route_is_described() -> None:
    paths = DESCRIPTION["paths"]
    assert sorted(path for path in paths if "post" in paths[path]) == POSTS
    assert sorted(path for path in paths if "get" in paths[path]) == [
        "/health",
        "/metrics",
        "/ready",
        "/status",
        "/v1/models",
        "/v1/models/{name}",
    ]


def test_every_reference_leads_somewhere() -> None:
    schemas = DESCRIPTION["components"]["schemas"]
    found = set(references(DESCRIPTION))
    assert found
    assert {name.removeprefix("#/components/schemas/") for name in found} <= set(
        schemas
    )


@pytest.mark.parametrize("path", POSTS)
def test_bodies_and_their_errors_are_described(path: str) -> None:
    assert body_schema(path)["additionalProperties"] is False
    responses = DESCRIPTION["paths"][path]["post"]["responses"]
    described = {"200", "400", "401", "413", "415", "429", "500", "503"}
    assert described <= set(responses)
    assert "422" not in responses
    schema = responses["400"]["content"]["application/json"]["schema"]["$ref"]
    form = "OpenAIErrorBody" if path.startswith("/v1/") else "ErrorBody"
    assert schema.endswith(f"/{form}")


def test_bounds_are_those_that_are_kept() -> None:
    fields = body_schema("/v1/chat/completions")["properties"]
    bound = fields["seed"]["anyOf"][0]["exclusiveMaximum"]
    assert (type(bound), bound) == (int, 2**64)  # as a float it is written as another
    text, texts, nothing = fields["stop"]["anyOf"]
    assert text["minLength"] == texts["items"]["minLength"] == 1
    assert texts["maxItems"] == 16
    assert nothing == {"type": "null"}
    assert fields["logit_bias"]["anyOf"][0]["additionalProperties"] is False
    assert fields["store"]["anyOf"][0]["const"] is False
    assert fields["messages"]["minItems"] == 1


def test_streams_are_described() -> None:
    for path in ("/chat", "/instruct", "/v1/chat/completions", "/v1/completions"):
        answer = DESCRIPTION["paths"][path]["post"]["responses"]["200"]["content"]
        assert set(answer) == {"application/json", "text/event-stream"}


def test_an_event_is_a_piece_an_error_or_the_last() -> None:
    answers = DESCRIPTION["paths"]["/v1/completions"]["post"]["responses"]
    events = answers["200"]["content"]["text/event-stream"]["itemSchema"]
    last, data = events["properties"]["data"]["anyOf"]
    assert last == {"const": "[DONE]"}
    piece, error = data["contentSchema"]["anyOf"]
    assert "choices" in piece["required"]
    assert error["required"] == ["error"]


def test_fields_that_need_others_say_so() -> None:
    streamed, alone, reported = body_schema("/v1/chat/completions")["allOf"]
    assert alone["if"]["required"] == ["receipt"]
    assert alone["then"]["properties"] == {"n": {"maximum": 1}}
    assert streamed["if"]["required"] == ["stream_options"]
    assert streamed["then"]["required"] == ["stream"]
    assert reported["if"]["required"] == ["top_logprobs"]
    assert reported["then"]["required"] == ["logprobs"]


def test_the_key_is_described_where_it_is_wanted() -> None:
    described = get(
        app_of(api_key="key"), "/openapi.json", headers={"Authorization": "Bearer key"}
    ).json()
    assert described["security"] == [{"bearer": []}, {"basic": []}]
    assert set(described["components"]["securitySchemes"]) == {"bearer", "basic"}
    open_paths = [
        path
        for path, methods in described["paths"].items()
        if all(each.get("security") == [] for each in methods.values())
    ]
    assert open_paths == ["/health", "/ready"]
    assert "security" not in DESCRIPTION


def test_a_handlers_answer_may_be_any_object() -> None:
    app = app_of(handlers=Handlers(forward_chat=lambda request: {}))
    paths = get(app, "/openapi.json").json()["paths"]
    answers = {
        path: paths[path]["post"]["responses"]["200"]["content"]["application/json"]
        for path in ("/chat", "/instruct")
    }
    assert answers["/chat"]["schema"]["type"] == "object"
    assert "anyOf" in answers["/instruct"]["schema"]


def test_what_is_no_json_is_described_by_its_own_form() -> None:
    def answer(path: str, method: str) -> dict[str, Any]:
        responses = DESCRIPTION["paths"][path][method]["responses"]
        content: dict[str, Any] = responses["200"]["content"]
        return content

    assert set(answer("/metrics", "get")) == {"text/plain"}
    assert set(answer("/profile", "post")) == {"application/zip"}
    conflict = DESCRIPTION["paths"]["/profile"]["post"]["responses"]["409"]
    assert "already" in conflict["description"]
