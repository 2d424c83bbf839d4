"""`JAXServer`: the one object that users load, call, subclass and serve."""

import dataclasses
import functools
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import fastapi

from jaxserver.adapters.http.serve import FLUSH_SECONDS, HttpServer
from jaxserver.adapters.prompts.late import LateFormatter
from jaxserver.adapters.prompts.pieces import Pieces
from jaxserver.application import Written, application
from jaxserver.hosting import Host
from jaxserver.overriding import Writers, own_handlers
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import UnsupportedMessages
from jaxserver.ports.generator import SavableStream
from jaxserver.ports.handlers import (
    CANCEL,
    URGENCY,
    Answer,
    ChatRequest,
    History,
    InstructRequest,
    PageUpdates,
    sampling_fields,
)
from jaxserver.ports.model import Params, PartitionRules
from jaxserver.ports.origin import ORIGIN
from jaxserver.ports.processors import Processors
from jaxserver.ports.progress import Progress, no_progress
from jaxserver.ports.prompt import Pairs, PromptFormatter, Rendered, conversation
from jaxserver.ports.status import StatusSnapshot
from jaxserver.ports.types import GenerationRequest, SamplingParams
from jaxserver.snapshot import reachable_host
from jaxserver.wiring import Load, Model, load_model, load_torch_model, take_model


class JAXServer:
    """A language model that answers Python, HTTP and the browser.

    Subclass it and override `format_chat`, `format_instruct`, `process_gradio_chat`,
    `process_gradio_instruct`, `forward_chat` or `forward_instruct`: every transport
    uses what you wrote. It implements the `Generator` and `ServerStatus` ports.

    Attributes:
        config: What it was given, with `instruct_format`, `prompt_prefix_chat` and
            `prompt_postfix_chat` filled in from the model once it is there.
        formatter: Writes conversations down, overrides included.
        number_of_served_request_until_last_up_time: Answers of `forward_*` so far.
        logits_processors: By name, steps of choosing a token that requests may ask for;
            a subclass says its own.
    """

    logits_processors: ClassVar[Processors] = {}

    def __init__(self, config: ServerConfig | Mapping[str, Any] | None = None) -> None:
        """Takes a configuration; `open` brings the model."""
        self.config = ServerConfig.of(config)
        self._writers = Writers(
            self, JAXServer, self.config, lambda: self._host.loaded().formatter
        )
        own = self.logits_processors, self._writers.own_prompts
        self._host = Host(self.config, *own)
        self.formatter: PromptFormatter = LateFormatter(self._writers.chat)
        self.number_of_served_request_until_last_up_time = 0
        self._pieces: Pieces | None = None
        self._http: HttpServer | None = None

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | None = None,
        config: ServerConfig | Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        partition_rules: PartitionRules = (),
    ) -> Self:
        """Loads a model and makes it ready to answer.

        Args:
            model: A packaged model's name, a folder, a `.gguf` file or a hub id;
                None takes the configuration's.
            config: A `ServerConfig` or a mapping with the same keys.
            progress: Hears how far downloading, loading and compiling are.
            partition_rules: `(regular expression over parameter paths, axes)`, which
                go before the model's own; an axis is the mesh's or None.

        Raises:
            InvalidConfig: A key is unknown or its value does not fit.
            ModelNotFound: The model is neither here nor can it be fetched.
            BrokenCheckpoint: A file does not hold what it should.
            UnsupportedModel: The model cannot be served.
        """
        server = cls(ServerConfig.of(config, model))
        server.open(progress, partition_rules)
        return server

    @classmethod
    def from_torch_pretrained(
        cls,
        path: str | os.PathLike[str],
        config: ServerConfig | Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        partition_rules: PartitionRules = (),
    ) -> Self:
        """Loads PyTorch's weights by the Flax class's own `from_pt`, with PyTorch.

        Safetensors need none: `load` reads them. Arguments and errors are `load`'s.
        """
        server = cls(ServerConfig.of(config, path))
        load = functools.partial(load_torch_model, partition_rules=partition_rules)
        server._start(load, progress)
        return server

    @classmethod
    def load_from_params(
        cls,
        model: Any,
        tokenizer: Any,
        params: Params | None = None,
        config: ServerConfig | Mapping[str, Any] | None = None,
        partition_rules: PartitionRules = (),
    ) -> Self:
        """Serves a `FlaxPreTrainedModel` that is in memory already.

        Args:
            model: Of one of transformers' classes or your own, causal or with an
                encoder.
            tokenizer: One of transformers'.
            params: The model's parameters; None takes those that it holds.
            config: A `ServerConfig` or a mapping with the same keys.
            partition_rules: As `load` takes them.

        Raises:
            InvalidConfig: A key is unknown or its value does not fit.
            UnsupportedModel: The model has no language-model head, or a setting that
                its class does not apply.
        """
        name = getattr(model.config, "name_or_path", "") or type(model).__name__
        server = cls(ServerConfig.of(config, name))
        parts = (model, params, tokenizer, server.config, partition_rules)
        server._start(lambda *_: take_model(*parts))
        return server

    def open(
        self, progress: Progress | None = None, partition_rules: PartitionRules = ()
    ) -> None:
        """Loads, compiles and starts; the errors are those of `load`."""
        load = functools.partial(load_model, partition_rules=partition_rules)
        self._start(load, progress)

    def _start(self, load: Load, progress: Progress | None = None) -> None:
        report = progress or no_progress
        self._host.open(lambda: load(self.config, report), self._take_pieces, report)

    def _take_pieces(self, model: Model) -> None:
        self._pieces = Pieces(model.formatter, self._host.config)
        self.config = self._pieces.config

    def compile(self, progress: Progress | None = None) -> None:
        """Compiles what `pre_compile = false` left for later."""
        self._host.compile(progress or no_progress)

    def generate(self, request: GenerationRequest) -> SavableStream:
        """Queues a request; see `ports.generator.Generator`."""
        return self._host.generate(request)

    def resume(
        self, path: str | os.PathLike[str], max_new_tokens: int | None = None
    ) -> SavableStream:
        """Goes on with an answer that a stream has saved, as it would have gone on.

        Raises:
            BrokenCheckpoint: The file is not what `save` writes.
            InvalidRequest: It was saved with another model.
        """
        return self._host.resume(Path(path), max_new_tokens)

    def process(
        self,
        string: str,
        *,
        greedy: bool | None = False,
        max_new_tokens: int | None = None,
        **sampling: Any,
    ) -> Iterator[tuple[str, int]]:
        """Continues a text; yields all of the answer so far and the tokens drawn.

        A prompt that is too long is cut where `use_prefix_tokenizer` says so. Closing
        the iterator stops the work.

        Args:
            string: The prompt, as the model is to read it. What `chat_format` returns
                is read as the routes read it: all its special tokens are written out.
            greedy: Take the likeliest token each time.
            max_new_tokens: Most tokens to draw; None takes the configuration's.
            **sampling: Further fields of `SamplingParams`.

        Raises:
            InvalidRequest: A field does not fit.
            PromptTooLong: The prompt leaves no room and may not be cut.
        """
        params = SamplingParams(
            greedy=bool(greedy), max_new_tokens=max_new_tokens, **sampling
        )
        request = GenerationRequest(
            prompt=string,
            sampling=params,
            truncate=self.config.use_prefix_tokenizer,
            origin=ORIGIN.get(),
            **URGENCY.get()._asdict(),
        )
        text = ""
        with self.generate(request) as stream:
            token = CANCEL.get()
            if token is not None:
                token.on_set(stream.cancel)
            for chunk in stream:
                text += chunk.text
                yield text, chunk.usage.completion_tokens

    def format_instruct(self, system: str | None, instruction: str) -> str:
        """Writes one instruction down as a prompt."""
        return self.config.instruct_format.format(instruct=instruction, system=system)

    def format_chat(self, history: Pairs, prompt: str, system: str | None) -> str:
        """Writes a conversation down; `history` are pairs of user and assistant."""
        if not self._writers.has_own_chat_pieces:
            messages = conversation(history, prompt, system)
            return self._host.loaded().formatter.format(messages)
        if system and self._writers.overrides("process_chat_history"):
            raise UnsupportedMessages(
                "the method `process_chat_history` takes no system message"
            )
        with_system = (system,) if system else ()
        return (
            self.process_chat_history(history, *with_system)
            + self.config.prompt_prefix_chat
            + prompt
            + self.config.prompt_postfix_chat
        )

    def chat_format(self, history: Pairs, prompt: str, system: str | None) -> str:
        """What `format_chat` writes, under its older name, ready for `process`."""
        messages = conversation(history, prompt, system)
        return Rendered.by(self._writers.format_chat(), messages)

    def process_chat_history(self, history: Pairs, system: str | None = None) -> str:
        """What stands before the last prompt and its prefix."""
        if self._pieces is None:
            raise self._host.not_ready()
        return self._pieces.history(history, system)

    def forward_instruct(self, data: InstructRequest) -> Answer:
        """Answers `POST /instruct`."""
        if not self._funcs_generated:
            return {"status": "down"}
        return self._forward(self._instruction(data.prompt, data.system), data)

    def forward_chat(self, data: ChatRequest) -> Answer:
        """Answers `POST /chat`."""
        if not self._funcs_generated:
            return {"status": "down"}
        said = conversation(data.history, data.prompt, data.system)
        return self._forward(Rendered.by(self.formatter, said), data)

    def process_gradio_chat(
        self,
        prompt: str,
        history: History,
        max_new_tokens: int,
        system: str,
        greedy: bool,
        **sampling: Any,
    ) -> PageUpdates:
        """Answers the chat page: yields an emptied input box and the history."""
        said = conversation(history, prompt, system)
        string = Rendered.by(self.formatter, said)
        sampling = {**sampling, "greedy": greedy, "max_new_tokens": max_new_tokens}
        for answer in self._shown(string, sampling):
            yield "", [*(history or ()), [prompt, answer]]

    def process_gradio_instruct(
        self,
        prompt: str,
        system: str,
        max_new_tokens: int,
        greedy: bool,
        **sampling: Any,
    ) -> PageUpdates:
        """Answers the instruct page: yields an emptied input box and the answer."""
        string = self._instruction(prompt, system)
        sampling = {**sampling, "greedy": greedy, "max_new_tokens": max_new_tokens}
        for answer in self._shown(string, sampling):
            yield "", answer

    def app(self, *, pages: bool = True) -> fastapi.FastAPI:
        """The HTTP application, to serve as it is or to mount in another one.

        Args:
            pages: With the chat and instruct pages.
        """
        return self._app(pages=pages)

    def _app(self, *, pages: bool = True, later: bool = False) -> fastapi.FastAPI:
        instruct = LateFormatter(self._writers.instruct)
        written = Written(self.formatter, instruct, own_handlers(self, JAXServer))
        return application(self, self._host, written, pages=pages, later=later)

    def fire(self, *, pages_later: bool = False) -> str:
        """Serves over HTTP in the background; returns the address it listens on.

        Told so, it brings the pages only when somebody asks for one.
        """
        config, app = self._host.config, self._app(later=pages_later)
        self._http = HttpServer(app, config.host, config.port)
        self._http.start()
        return self.url

    def launch(self) -> dict[str, str]:
        """Serves the pages, if nothing is served yet, and says where they are."""
        url = self.fire() if self._http is None else self.url
        return {"chat": f"{url}/gradio_chat", "instruct": f"{url}/gradio_instruct"}

    @property
    def url(self) -> str:
        """Where it can be reached from this machine."""
        if self._http is None:
            raise self._host.not_ready()
        host = reachable_host(self._host.config.host)
        return f"http://{host}:{self._http.port}"

    def end(self, drain_seconds: float | None = None) -> bool:
        """Takes no more requests, lets those there are finish, and stops.

        Unless told otherwise, they get `shutdown_timeout`. False: a step that hangs.
        """
        allowed, began = drain_seconds, time.monotonic()
        seconds = self.config.shutdown_timeout if allowed is None else allowed
        has_ended = self._host.drain(seconds)
        if self._http is not None:
            self._http.stop(max(FLUSH_SECONDS, began + seconds - time.monotonic()))
        return has_ended

    def status(self) -> dict[str, Any]:
        """The snapshot as plain values, as `GET /status` gives it."""
        values = dataclasses.asdict(self.snapshot())
        return {**values, "state": values["state"].value}

    def snapshot(self) -> StatusSnapshot:
        """How the server is doing at this moment."""
        return self._host.snapshot()

    def fingerprint(self) -> str | None:
        """The short form of what a receipt says of the model and how it is run."""
        return self._host.fingerprint()

    @property
    def model_name(self) -> str:
        """Name under which the model is served."""
        return self._host.model_name

    def is_ready(self) -> bool:
        return self._host.is_ready()

    def is_alive(self) -> bool:
        return self._host.is_alive()

    @property
    def _funcs_generated(self) -> bool:
        """Whether it can answer; the original's name for it."""
        return self.is_ready()

    def _shown(self, string: str, sampling: Mapping[str, Any]) -> Iterator[str]:
        """An answer as the pages show it: while it comes, or whole."""
        answer = ""
        for answer, _ in self.process(string, **sampling):
            if self.config.stream_tokens_for_gradio:
                yield answer
        yield answer

    def _forward(self, string: str, data: InstructRequest | ChatRequest) -> Answer:
        response, used_tokens = "", 0
        for text, count in self.process(string, **sampling_fields(data)):
            response, used_tokens = text, count
        self.number_of_served_request_until_last_up_time += 1
        return {"input": string, "response": response, "tokens_used": used_tokens}

    def _instruction(self, prompt: str, system: str | None) -> str:
        messages = conversation([], prompt, system)
        return Rendered.by(self._writers.instruct(), messages)
