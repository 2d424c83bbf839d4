"""One conversation in two forms: pairs, and Gradio's messages."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxserver.adapters.gradio_ui.settings import checked_text
from jaxserver.ports.errors import InvalidRequest
from jaxserver.ports.handlers import History


def to_gradio(history: Sequence[Sequence[str | None]]) -> list[dict[str, Any]]:
    """Pairs as the messages that `gr.Chatbot` shows; what is empty is not shown.

    The content is spelled out as a part, since Gradio strips and re-indents bare text.
    """
    return [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for turn in history
        for role, text in zip(("user", "assistant"), turn, strict=True)
        if text
    ]


def from_gradio(messages: object) -> History:
    """Pairs out of the messages that a browser sends; turns without an answer are left.

    Raises:
        InvalidRequest: The messages hold something else than text.
    """
    history: History = []
    prompt = ""
    for message in _list(messages):
        if not isinstance(message, Mapping):
            allowed = "messages, each with a role and text"
            raise InvalidRequest("history", type(message).__name__, allowed)
        text = _text_of(message.get("content"))
        if message.get("role") == "user":
            prompt = text
        elif text:
            history.append([prompt, text])
    return history


def without_last(messages: object) -> tuple[History, str]:
    """The history before the last thing that the user said, and that."""
    left = list(_list(messages))
    while left:
        message = left.pop()
        if isinstance(message, Mapping) and message.get("role") == "user":
            return from_gradio(left), _text_of(message.get("content"))
    return [], ""


def is_answered(history: History) -> bool:
    """The last turn has some answer."""
    return bool(history and history[-1][1])


def checked_pairs(history: object) -> History:
    """The history as a client of the API sends it.

    Raises:
        InvalidRequest: It is not a list of pairs of texts.
    """
    allowed = "a list of [user, assistant] pairs of texts"
    for turn in _list(history):
        is_pair = isinstance(turn, list | tuple) and len(turn) == 2
        if not is_pair or not all(isinstance(text, str) for text in turn):
            raise InvalidRequest("history", "another entry", allowed)
    return [list(turn) for turn in _list(history)]


def _list(value: object) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise InvalidRequest("history", type(value).__name__, "a list")
    return value or []


def _text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return "".join(checked_text("history", text) for text in texts)
