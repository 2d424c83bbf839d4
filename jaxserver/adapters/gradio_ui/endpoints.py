"""The two named endpoints that `gradio_client` calls.

    chat = Client("http://127.0.0.1:2059/gradio_chat")
    chat.predict("hello", api_name="/chat")
    instruct = Client("http://127.0.0.1:2059/gradio_instruct")
    instruct.predict("hello", system="Be brief.", greedy=True, api_name="/instruct")

Both give the answer's text; `submit` gives it as it grows, and `Job.cancel` stops it.
Besides the text they take, by name, `system`, `greedy`, `max_new_tokens`,
`temperature`, `top_p` and `top_k`; what is left out is as the server is configured.
`/chat` also takes `history`, a list of [user, assistant] pairs.
"""

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

from jaxserver.adapters.gradio_ui.errors import errors_on_the_page
from jaxserver.adapters.gradio_ui.settings import Settings, checked_text
from jaxserver.adapters.gradio_ui.turns import checked_pairs
from jaxserver.adapters.gradio_ui.updates import (
    Chat,
    Instruct,
    Shown,
    Update,
    Updates,
    watched,
)
from jaxserver.ports.handlers import History

Endpoint: TypeAlias = Callable[..., AsyncIterator[str]]


def chat_endpoint(chat: Chat) -> Endpoint:
    def ask(
        settings: Settings, message: str, history: list[list[str]] | None = None
    ) -> Updates[History]:
        """Continues a conversation of [user, assistant] pairs and gives the answer."""
        prompt, pairs = checked_text("message", message), checked_pairs(history)
        first = Update(shown=[*pairs, [prompt, ""]])
        return watched(chat(prompt, pairs, settings), first)

    return _endpoint(ask, lambda shown: shown[-1][1] if shown else "")


def instruct_endpoint(instruct: Instruct) -> Endpoint:
    def ask(settings: Settings, prompt: str) -> Updates[str]:
        """Gives the answer to one instruction."""
        answers = instruct(checked_text("prompt", prompt), settings)
        return watched(answers, Update(shown=""))

    return _endpoint(ask, str)


def _endpoint(
    ask: Callable[..., Updates[Shown]], text_of: Callable[[Shown], str]
) -> Endpoint:
    """What Gradio is to call: its fields are those of `ask`, and of `Settings`."""
    own = list(inspect.signature(ask).parameters.values())[1:]
    settings = list(inspect.signature(Settings).parameters.values())

    async def answer(*values: Any) -> AsyncIterator[str]:
        with errors_on_the_page():
            names = [field.name for field in settings]
            wanted = dict(zip(names, values[len(own) :], strict=True))
            async with contextlib.aclosing(
                ask(Settings(**wanted), *values[: len(own)])
            ) as updates:
                async for update in updates:
                    yield text_of(update.shown)

    fields = [*own, *(field.replace(kind=own[0].kind) for field in settings)]
    given: Any = answer  # Gradio reads the names and types that it shows to clients
    given.__signature__ = inspect.signature(answer).replace(parameters=fields)
    given.__annotations__ = {field.name: field.annotation for field in fields}
    given.__doc__ = ask.__doc__
    return answer
