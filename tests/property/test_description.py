"""The server is asked what its own description allows, and what it forbids."""

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CheckContext
from schemathesis.config import SchemathesisConfig
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import positive_data_acceptance

from jaxserver import application
from jaxserver import server as server_module
from jaxserver.adapters.prompts.formatter import ChatTemplateFormatter
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.progress import Progress
from jaxserver.server import JAXServer
from jaxserver.wiring import Model
from tests.contract.tiny_tokenizers import CHATML
from tests.fakes import ByteTokenizer
from tests.unit import tiny_server

# The server runs in this process, and its libraries draw numbers meanwhile.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside")
KEY = "sesame"
CONFIG = SchemathesisConfig.from_dict(
    {
        "request-timeout": 60,
        "max-stream-events": 10_000,
        # Tokens are no secrets here.
        "output": {"sanitization": {"enabled": False}},
        "checks": {
            "max_response_time": 30,
        },
    }
)
UNSAYABLE = ("context_length_exceeded", "prompt_too_long", "to equal max_")
"""In refusals that no schema can announce: tokens of a text, the equality of fields."""


class Takes:
    """A profile that is taken at once."""

    def capture(self, seconds: float, cancelled: object) -> bytes:
        return b"archive"


def parts(config: ServerConfig, progress: Progress, partition_rules: Any = ()) -> Model:
    """Any conversation can be written down."""
    model = tiny_server.tiny_parts(config, progress, partition_rules)
    return model._replace(formatter=ChatTemplateFormatter(template=CHATML))


def narrowed(part: Any) -> Any:
    """What a server knows once it has a model: the vocabulary's end, no processors."""
    if isinstance(part, list):
        return [narrowed(each) for each in part]
    if not isinstance(part, dict):
        return part
    part = {key: narrowed(value) for key, value in part.items()}
    if "logits_processors" in part.get("properties", {}):
        nothing = {"type": ["object", "null"], "maxProperties": 0}
        part["properties"]["logits_processors"] = nothing
    items = part.get("items", {})
    if items.get("type") == "integer" and items.get("exclusiveMaximum") == 2**31:
        items["exclusiveMaximum"] = ByteTokenizer.vocab_size
    ids = part.get("patternProperties", {})
    if ids:
        (values,) = ids.values()
        part["patternProperties"] = {
            r"^(0|[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-7])$": values
        }
    return part


DESCRIPTION = JAXServer({"api_key": KEY, "profile": True}).app(pages=False).openapi()
SCHEMA = schemathesis.openapi.from_dict(narrowed(DESCRIPTION), config=CONFIG)


def give_time(body: Any) -> None:
    """A request that gives itself no time is rightly answered by 504."""
    seconds = body.get("deadline_seconds", -1) if isinstance(body, dict) else -1
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if is_number and 0 <= seconds < 1000:
        body["deadline_seconds"] = 1000


def agree(body: Any) -> None:
    """Two names of one limit have to say the same, which no schema can say."""
    both = ("max_tokens", "max_completion_tokens")
    said = [body.get(name) for name in both] if isinstance(body, dict) else []
    if said and all(type(each) is int and 0 < each < 2**31 for each in said):
        body[both[1]] = body[both[0]]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, tiny_server.tiny_servers() as servers:
        patch.setattr(server_module, "load_model", parts)
        patch.setattr(application, "JaxProfiler", Takes)
        server = servers.open(api_key=KEY, profile=True)
        yield server.fire()
        assert server.snapshot().compiles_after_ready == 0
        assert server.snapshot().failed_dispatches == 0


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """Connections that are kept, and a count of what was asked."""
    with requests.Session() as session:
        yield session


@pytest.fixture(scope="module")
def answered() -> Iterator[list[int]]:
    """The status of every answer."""
    statuses: list[int] = []
    yield statuses
    counts = {status: statuses.count(status) for status in sorted(set(statuses))}
    print(  # noqa: T201  # for those who want to know how many it were
        f"\n{len(statuses)} cases; answers by status: {counts}"
    )


def streams_end(ctx: CheckContext, response: Response, case: Any) -> None:
    """A stream is played to its end, which is said or is an error."""
    if "text/event-stream" in response.headers.get("content-type", [""])[0]:
        *_, last, nothing = response.text.split("\n\n")
        assert not nothing
        assert last == "data: [DONE]" or last.startswith('data: {"error"')


def is_unsayable(response: Response) -> bool:
    said = str(response.json()["error"]) if response.status_code == 400 else ""
    return any(words in said for words in UNSAYABLE)


@SCHEMA.parametrize()
@settings(
    max_examples=max(25, min(300, hypothesis.settings().max_examples // 10)),
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_described(
    case: Any, url: str, session: requests.Session, answered: list[int]
) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    give_time(case.body)
    agree(case.body)
    response = case.call(url, session, headers)
    answered.append(response.status_code)
    case.validate_response(
        response,
        headers=headers,
        additional_checks=[streams_end],
        excluded_checks=[positive_data_acceptance] if is_unsayable(response) else [],
        transport_kwargs={"session": session, "headers": headers, "base_url": url},
    )
