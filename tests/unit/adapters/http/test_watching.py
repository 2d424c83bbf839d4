import asyncio
from typing import Any

import pytest

from jaxserver.ports.errors import ProfileRunning
from tests.fakes import FixedMetrics, ScriptedProfiler
from tests.unit.adapters.http.in_process import app_of, get, post
from tests.waiting import eventually


def test_metrics_are_given_as_they_are() -> None:
    response = get(app_of(), "/metrics")
    assert response.status_code == 200
    assert response.content == FixedMetrics().scrape()
    assert response.headers["content-type"] == FixedMetrics.content_type


@pytest.mark.parametrize("seconds", [1, 1.25])
def test_a_profile_is_an_archive(seconds: float) -> None:
    profiler = ScriptedProfiler()
    response = post(app_of(profiler=profiler), "/profile", {"seconds": seconds})
    assert response.status_code == 200
    assert response.content == b"archive"
    assert response.headers["content-type"] == "application/zip"
    assert "profile.zip" in response.headers["content-disposition"]
    assert profiler.asked == [seconds]
    assert profiler.ended == [False]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"seconds": 0.99},
        {"seconds": 60.01},
        {"seconds": "1"},
        {"seconds": True},
        {"seconds": None},
    ],
)
def test_other_lengths_are_refused_by_name(body: object) -> None:
    profiler = ScriptedProfiler()
    response = post(app_of(profiler=profiler), "/profile", body)
    assert response.status_code == 400
    assert response.json()["error"]["field"] == "seconds"
    assert profiler.asked == []


def test_a_second_profile_at_a_time_is_409() -> None:
    profiler = ScriptedProfiler(fail=ProfileRunning)
    response = post(app_of(profiler=profiler), "/profile", {"seconds": 1})
    assert response.status_code == 409
    assert response.json()["error"]["code"] == "profile_running"


def test_without_a_profiler_there_is_no_such_route() -> None:
    response = post(app_of(profiler=None), "/profile", {"seconds": 1})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_a_client_that_leaves_ends_its_profile() -> None:
    profiler = ScriptedProfiler()
    app = app_of(profiler=profiler)
    body = b'{"seconds": 60}'
    come = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if come:
            return come.pop()
        while not profiler.asked:
            await asyncio.sleep(0.005)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        assert message.get("status") in {None, 499}

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/profile",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    asyncio.run(app(scope, receive, send))
    assert eventually(lambda: profiler.ended == [True])
