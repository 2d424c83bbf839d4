"""Whatever a subclass writes is what every transport uses."""

import types
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jaxserver.overriding import own_handlers
from jaxserver.ports.errors import EngineFailed, NoChatTemplate, UnsupportedMessages
from jaxserver.ports.handlers import (
    Answer,
    ChatRequest,
    InstructRequest,
    PageUpdates,
)
from jaxserver.ports.prompt import Rendered
from jaxserver.ports.types import Message
from jaxserver.server import JAXServer
from tests.fakes import ByteFormatter
from tests.unit.tiny_server import Servers, page_texts, tiny_servers
from tests.waiting import eventually

TALK = [
    Message(role="system", content="s"),
    Message(role="user", content="a"),
    Message(role="assistant", content="b"),
    Message(role="user", content="c"),
]
TURNS: dict[str, Any] = {"history": [["a", "b"]], "prompt": "c", "system": "s"}
CHAT = ChatRequest(prompt="c", system="s", history=[("a", "b")], max_new_tokens=1)
INSTRUCT = InstructRequest(prompt="i", system="s", max_new_tokens=1)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with tiny_servers() as made:
        yield made


class ByMethods(JAXServer):
    def format_chat(
        self, history: Sequence[Sequence[str]], prompt: str, system: str | None
    ) -> str:
        return f"{system}|{history}|{prompt}"

    def format_instruct(self, system: str | None, instruction: str) -> str:
        return f"{system}|{instruction}"


class ByFunctions(JAXServer):
    @staticmethod
    def format_chat(
        history: Sequence[Sequence[str]], prompt: str, system: str | None
    ) -> str:
        return f"{system}|{history}|{prompt}"

    @staticmethod
    def format_instruct(system: str | None, instruction: str) -> str:
        return f"{system}|{instruction}"


class ByOlderName(JAXServer):
    def chat_format(
        self, history: Sequence[Sequence[str]], prompt: str, system: str | None
    ) -> str:
        return f"{system}|{history}|{prompt}"


@pytest.mark.parametrize("kind", [ByMethods, ByFunctions, ByOlderName])
def test_a_chat_is_written_by_the_override(
    servers: Servers, kind: type[JAXServer]
) -> None:
    server = servers.open(kind)

    assert server.formatter.format(TALK) == "s|[['a', 'b']]|c"
    assert server.forward_chat(CHAT)["input"] == "s|[['a', 'b']]|c"
    assert server.formatter.system_turn(TALK) == "s|[]|"


@pytest.mark.parametrize("kind", [ByMethods, ByFunctions])
def test_an_instruction_is_written_by_the_override(
    servers: Servers, kind: type[JAXServer]
) -> None:
    assert servers.open(kind).forward_instruct(INSTRUCT)["input"] == "s|i"


@pytest.mark.parametrize("kind", [ByMethods, ByFunctions, ByOlderName])
def test_every_route_uses_the_override(servers: Servers, kind: type[JAXServer]) -> None:
    server = servers.open(kind)
    client = TestClient(server.app(pages=False))
    body = {"prompt": "c", "system": "s", "history": [["a", "b"]], "max_new_tokens": 1}

    assert client.post("/chat", json=body).json()["input"] == "s|[['a', 'b']]|c"
    messages = [{"role": m.role, "content": m.content} for m in TALK]
    wanted = {"messages": messages, "max_tokens": 1}
    answer = client.post("/v1/chat/completions", json=wanted).json()
    prompt = "s|[['a', 'b']]|c"
    assert answer["usage"]["prompt_tokens"] == len(prompt)


@pytest.mark.parametrize("kind", [ByMethods, ByFunctions, ByOlderName])
def test_the_chat_page_uses_the_override(
    servers: Servers, kind: type[JAXServer]
) -> None:
    server = servers.open(kind)
    server.fire()
    *_, (answer, _) = server.process(Rendered("s|[['a', 'b']]|c"), greedy=True)

    body: dict[str, Any] = {"history": [["a", "b"]], "system": "s", "greedy": True}
    assert page_texts(server, "chat", "c", **body)[-1] == answer
    *_, (_, shown) = server.process_gradio_chat("c", [["a", "b"]], 40, "s", True)
    assert shown == [["a", "b"], ["c", answer]]


@pytest.mark.parametrize("kind", [ByMethods, ByFunctions])
def test_the_instruct_page_uses_the_override(
    servers: Servers, kind: type[JAXServer]
) -> None:
    server = servers.open(kind)
    server.fire()
    *_, (answer, _) = server.process(Rendered("s|i"), greedy=True)

    assert page_texts(server, "instruct", "i", system="s", greedy=True)[-1] == answer
    *_, (_, shown) = server.process_gradio_instruct("i", "s", 40, True)
    assert shown == answer


def test_a_method_put_on_the_object_is_an_override(servers: Servers) -> None:
    server = servers.open()

    def shout(self: JAXServer, history: object, prompt: str, system: object) -> str:
        return prompt.upper()

    server.format_chat = types.MethodType(shout, server)  # type: ignore[method-assign]

    assert server.formatter.format(TALK) == "C"


def test_messages_an_override_cannot_take_name_it(servers: Servers) -> None:
    server = servers.open(ByMethods)

    with pytest.raises(UnsupportedMessages, match="format_chat"):
        server.formatter.format([TALK[1], TALK[3]])


class OwnAnswers(JAXServer):
    def forward_chat(self, data: ChatRequest) -> Answer:
        return {"mine": data.prompt}

    def process_gradio_instruct(
        self, prompt: str, system: str, max_new_tokens: int, greedy: bool, **_: Any
    ) -> PageUpdates:
        yield "", prompt


class OwnProcess(JAXServer):
    def process(self, string: str, **_: Any) -> Iterator[tuple[str, int]]:
        yield string[::-1], 7


def test_only_what_is_the_users_own_is_given_to_the_adapters(servers: Servers) -> None:
    handlers = own_handlers(servers.make(OwnAnswers), JAXServer)
    nothing = own_handlers(servers.make(), JAXServer)

    assert handlers.forward_chat is not None
    assert handlers.process_gradio_instruct is not None
    assert handlers.forward_instruct is None
    assert handlers.process_gradio_chat is None
    assert nothing == type(nothing)()


def test_an_own_answer_is_what_the_route_or_page_gives(servers: Servers) -> None:
    server = servers.open(OwnAnswers)
    client = TestClient(server.app(pages=False))
    server.fire()

    assert client.post("/chat", json={"prompt": "p"}).json() == {"mine": "p"}
    assert page_texts(server, "instruct", "p") == ["", "p"]


def test_an_own_process_answers_everything(servers: Servers) -> None:
    server = servers.open(OwnProcess)
    client = TestClient(server.app(pages=False))

    assert None not in vars(own_handlers(server, JAXServer)).values()
    instruct = client.post("/instruct", json={"prompt": "p"}).json()
    assert instruct["response"] == instruct["input"][::-1]
    assert instruct["tokens_used"] == 7
    server.fire()
    for page in ("chat", "instruct"):
        assert page_texts(server, page, "p")[-1] == instruct["response"]


def test_the_pieces_of_the_configuration_compose_to_the_models_prompt(
    servers: Servers,
) -> None:
    server = servers.open()
    config, formatter = server.config, ByteFormatter()

    by_pieces = (
        server.process_chat_history([["a", "b"]])
        + config.prompt_prefix_chat
        + "c"
        + config.prompt_postfix_chat
    )
    assert by_pieces == formatter.format(TALK[1:])
    assert server.chat_format(**TURNS) == formatter.format(TALK)
    instruct = config.instruct_format.format(instruct="c", system="s")
    assert instruct == formatter.format([TALK[0], TALK[3]])
    silent = config.instruct_format.format(instruct="c", system=None)
    assert silent == formatter.format([TALK[3]]) == server.format_instruct(None, "c")
    assert "None" not in silent


def test_pieces_of_the_users_own_are_what_prompts_are_made_of(servers: Servers) -> None:
    server = servers.open(
        instruct_format="[{system}] {instruct}",
        prompt_prefix_chat="<",
        prompt_postfix_chat=">",
    )

    assert server.format_instruct("s", "i") == "[s] i"
    assert server.format_instruct(None, "i") == "[] i"
    assert server.format_chat(**TURNS) == "s<a>b<c>"
    assert server.formatter.format(TALK) == "s<a>b<c>"


class WithPolish(JAXServer):
    """Overrides by way of `super()`."""

    def format_instruct(self, system: str | None, instruction: str) -> str:
        return super().format_instruct(system, instruction) + "Sure: "

    def forward_instruct(self, data: InstructRequest) -> Answer:
        return {**super().forward_instruct(data), "polished": True}


def test_an_override_may_call_what_it_overrides(servers: Servers) -> None:
    server = servers.open(WithPolish)
    answer = server.forward_instruct(INSTRUCT)

    assert answer["polished"] is True
    expected = ByteFormatter().format([TALK[0], Message(role="user", content="i")])
    assert answer["input"] == expected + "Sure: "


class SumsUp(JAXServer):
    """Asks the model while it writes a prompt down."""

    def format_chat(
        self, history: Sequence[Sequence[str]], prompt: str, system: str | None
    ) -> str:
        *_, (summary, _) = self.process("sum up", greedy=True, max_new_tokens=4)
        return summary + prompt


def test_an_override_may_ask_the_model(servers: Servers) -> None:
    server = servers.open(SumsUp)
    *_, (summary, _) = server.process("sum up", greedy=True, max_new_tokens=4)

    assert server.forward_chat(ChatRequest(prompt="p"))["input"] == f"{summary}p"


def test_one_that_asks_the_model_when_its_prompt_is_cut_fails_alone(
    servers: Servers,
) -> None:
    server = servers.open(SumsUp)

    with pytest.raises(EngineFailed, match="when it is cut"):
        server.forward_chat(ChatRequest(prompt="x" * 1000))
    assert server.forward_chat(ChatRequest(prompt="p"))["response"]


class OwnHistory(JAXServer):
    def process_chat_history(
        self, history: Sequence[Sequence[str]], system: str | None = None
    ) -> str:
        return "".join(f"({user}:{answer})" for user, answer in history)


def test_an_own_history_stands_before_the_pieces(servers: Servers) -> None:
    server = servers.open(OwnHistory, prompt_prefix_chat="<", prompt_postfix_chat=">")

    assert server.formatter.format(TALK[1:]) == "(a:b)<c>"
    with pytest.raises(UnsupportedMessages, match="process_chat_history"):
        server.formatter.format(TALK)


@pytest.mark.parametrize("streams", [True, False])
def test_the_pages_show_an_answer_as_it_comes_or_whole(
    servers: Servers, streams: bool
) -> None:
    server = servers.open(stream_tokens_for_gradio=streams)
    history = [["a", "b"]]
    chat = list(server.process_gradio_chat("c", history, 20, "s", True))
    instruct = list(server.process_gradio_instruct("i", "s", 20, True, top_k=5))

    assert (len(chat) > 1) == (len(instruct) > 1) == streams
    box, shown = chat[-1]
    assert box == ""
    assert isinstance(shown, list)
    assert shown[0] == ["a", "b"]
    assert shown[1][0] == "c"
    assert history == [["a", "b"]]


def test_a_page_that_is_closed_frees_the_slot(servers: Servers) -> None:
    server = servers.open()
    page = server.process_gradio_instruct("i", "", 300, False, ignore_eos=True)
    next(page)
    page.close()  # type: ignore[attr-defined]  # generators have it

    assert eventually(lambda: server.snapshot().slots_in_use == 0)


def test_a_model_without_a_template_names_the_method_to_write(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_template(self: ByteFormatter, messages: Sequence[Message]) -> str:
        raise NoChatTemplate("format_chat")

    monkeypatch.setattr(ByteFormatter, "format", no_template)
    server = servers.open()

    with pytest.raises(NoChatTemplate, match="format_chat"):
        server.formatter.format(TALK)
    assert server.config.prompt_prefix_chat == ""


@pytest.mark.parametrize("words", [1, 200], ids=["short", "cut"])
def test_the_methods_answer_as_the_routes_do(servers: Servers, words: int) -> None:
    server = servers.open()
    client = TestClient(server.app(pages=False))
    asked: dict[str, Any] = {"prompt": "word " * words, "system": "s", "seed": 5}
    chat = {**asked, "history": [["a", "b"]]}

    instructed = server.forward_instruct(InstructRequest(**asked))
    chatted = server.forward_chat(ChatRequest(**chat))

    assert client.post("/instruct", json=asked).json().items() >= instructed.items()
    assert client.post("/chat", json=chat).json().items() >= chatted.items()


class Otherwise(ByMethods):
    def format_instruct(self, system: str | None, instruction: str) -> str:
        return f"{system}: {instruction}"


def test_whoever_writes_prompts_otherwise_has_another_fingerprint(
    servers: Servers,
) -> None:
    by_others = [
        servers.open(),
        servers.open(ByMethods),
        servers.open(Otherwise),
        servers.open(instruct_format="{instruct}"),
        servers.open(prompt_prefix_chat="> "),
    ]
    said = [server.fingerprint() for server in by_others]
    assert len(set(said)) == 5
    assert servers.open(ByMethods).fingerprint() == said[1]


def test_a_method_whose_source_cannot_be_read_is_known_by_its_name(
    servers: Servers,
) -> None:
    names: dict[str, Any] = {}
    exec("def format_chat(self, history, prompt, system): return prompt", names)
    made = [type("Made", (JAXServer,), {"format_chat": names["format_chat"]})] * 2
    one, two = (servers.open(kind).fingerprint() for kind in made)
    assert one == two != servers.open().fingerprint()
