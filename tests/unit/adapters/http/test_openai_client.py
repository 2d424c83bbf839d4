"""The official client reads every answer, and turns every error into its own class."""

import contextlib
from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from jaxserver.ports.errors import EngineFailed, PromptTooLong, ServerFull
from jaxserver.ports.receipt import Receipt
from tests.fakes import IDENTITY, ScriptedGenerator
from tests.unit.adapters.http.in_process import app_of, failing
from tests.unit.adapters.http.real_server import serving
from tests.unit.adapters.http.test_sse import BreakingGenerator

HI: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "hi"}]


@contextlib.contextmanager
def client_of(
    generator: ScriptedGenerator | None = None,
    *,
    wanted_key: str | None = None,
    strict: bool = True,
) -> Iterator[openai.OpenAI]:
    with (
        serving(app_of(generator, api_key=wanted_key)) as server,
        openai.OpenAI(
            api_key="secret",
            base_url=f"http://127.0.0.1:{server.port}/v1",
            max_retries=0,
            timeout=10,
            _strict_response_validation=strict,
        ) as client,
    ):
        yield client


def test_it_reads_a_chat_with_logprobs() -> None:
    with client_of() as client:
        answer = client.chat.completions.create(
            model="fake", messages=HI, logprobs=True, top_logprobs=2, seed=1
        )

    (choice,) = answer.choices
    assert choice.message.content == "Hello"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert [entry.token for entry in choice.logprobs.content] == ["Hel", "lo"]
    assert [len(entry.top_logprobs) for entry in choice.logprobs.content] == [2, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_it_knows_the_name_of_its_request() -> None:
    with client_of() as client:
        answer = client.chat.completions.create(
            model="fake", messages=HI, extra_headers={"X-Request-Id": "mine"}
        )
    assert answer._request_id == "mine"
    assert answer.id.startswith("chatcmpl-")


def test_it_may_send_an_answer_back() -> None:
    with client_of() as client:
        answer = client.chat.completions.create(model="fake", messages=HI)
        message = answer.choices[0].message
        again = client.chat.completions.create(
            model="fake",
            messages=[*HI, message.model_dump(), *HI],  # type: ignore[list-item]  # as users do
        )
    assert again.choices[0].message.content == "Hello"


def test_it_reads_a_completion_with_logprobs() -> None:
    with client_of() as client:
        answer = client.completions.create(model="fake", prompt="x", logprobs=1)

    (choice,) = answer.choices
    assert choice.text == "Hello"
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == [-0.5, -0.5]
    assert choice.logprobs.text_offset == [0, 3]


def test_it_reads_a_streamed_chat() -> None:
    with client_of() as client:
        stream = client.chat.completions.create(
            model="fake",
            messages=HI,
            stream=True,
            logprobs=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)

    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == "Hello"
    assert choices[0].delta.role == "assistant"
    assert choices[-1].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 5


def test_it_reads_a_streamed_completion() -> None:
    # Its type of a completion is that of a whole one, which has a finish reason; the
    # pieces that OpenAI sends have none either.
    with client_of(strict=False) as client:
        stream = client.completions.create(
            model="fake", prompt=[1, 2], stream=True, logprobs=0
        )
        assert "".join(chunk.choices[0].text for chunk in stream) == "Hello"


def test_it_raises_an_error_in_the_middle_of_a_stream() -> None:
    with client_of(BreakingGenerator(EngineFailed("broken"))) as client:
        stream = client.chat.completions.create(model="fake", messages=HI, stream=True)
        with pytest.raises(openai.APIError, match="broken"):
            list(stream)


def test_it_reads_the_fingerprint_of_answers_and_events() -> None:
    with client_of() as client:
        answer = client.chat.completions.create(model="fake", messages=HI)
        text = client.completions.create(model="fake", prompt="x")
        stream = client.chat.completions.create(model="fake", messages=HI, stream=True)
        said = [answer.system_fingerprint, text.system_fingerprint]
        said += [event.system_fingerprint for event in stream]
    assert len(said) > 4
    assert set(said) == {IDENTITY.fingerprint()}


def test_it_passes_a_receipt_on() -> None:
    asked = {"receipt": True}
    with client_of() as client:
        answer = client.chat.completions.create(
            model="fake", messages=HI, extra_body=asked
        )
    assert answer.model_extra is not None
    assert Receipt.from_json(answer.model_extra["receipt"]).answer.ids == (0, 1)


def test_it_reads_the_models() -> None:
    with client_of() as client:
        listed = [model.id for model in client.models.list()]
        assert [*listed, client.models.retrieve("fake").id] == ["fake", "fake"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ServerFull("full", 1), openai.RateLimitError),
        (EngineFailed("broken"), openai.InternalServerError),
        (PromptTooLong(9, 5), openai.BadRequestError),
    ],
)
def test_it_raises_its_own_errors(
    error: Exception, kind: type[openai.APIStatusError]
) -> None:
    with client_of(failing(lambda: error)) as client, pytest.raises(kind) as caught:
        client.chat.completions.create(model="fake", messages=HI)
    assert caught.value.code is not None


def test_it_shows_its_key() -> None:
    with client_of(wanted_key="secret") as client:
        assert client.models.retrieve("fake").id == "fake"
    with (
        client_of(wanted_key="other") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.retrieve("fake")
