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
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

from jaxserver.adapters.gradio_ui.errors import errors_on_the_page
from jaxserver.adapters.gradio_ui.settings import Settings, checked_text
from jaxserver.adapters.gradio_ui.turns import checked_pairs
from jaxserver.adapters.gradio_ui.updates import Chat, Instruct, Update, watched

Endpoint: TypeAlias = Callable[..., AsyncIterator[str]]


def chat_endpoint(chat: Chat) -> Endpoint:
    async def answer(  # noqa: PLR0913  # the names are the endpoint's fields
        message: str,
        history: list[list[str]] | None = None,
        system: str = "",
        greedy: bool = False,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
    ) -> AsyncIterator[str]:
        """Continues a conversation of [user, assistant] pairs and gives the answer."""
        with errors_on_the_page():
            settings = Settings(
                system=system,
                greedy=greedy,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
            )
            prompt, pairs = checked_text("message", message), checked_pairs(history)
            updates = watched(
                chat(prompt, pairs, settings), Update(shown=[*pairs, [prompt, ""]])
            )
            async with contextlib.aclosing(updates):
                async for update in updates:
                    yield update.shown[-1][1] if update.shown else ""

    return answer


def instruct_endpoint(instruct: Instruct) -> Endpoint:
    async def answer(  # noqa: PLR0913  # the names are the endpoint's fields
        prompt: str,
        system: str = "",
        greedy: bool = False,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
    ) -> AsyncIterator[str]:
        """Gives the answer to one instruction."""
        with errors_on_the_page():
            settings = Settings(
                system=system,
                greedy=greedy,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
            )
            updates = watched(
                instruct(checked_text("prompt", prompt), settings), Update(shown="")
            )
            async with contextlib.aclosing(updates):
                async for update in updates:
                    yield update.shown

    return answer
