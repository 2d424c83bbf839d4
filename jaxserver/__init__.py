"""Serves language models written in JAX; an answer is a function of its request."""

from typing import TYPE_CHECKING, Any

from jaxserver.ports.config import ServerConfig
from jaxserver.ports.handlers import ChatRequest, InstructRequest
from jaxserver.ports.processors import LogitsProcessor
from jaxserver.ports.prompt import Rendered
from jaxserver.ports.types import (
    Chunk,
    FinishReason,
    GenerationRequest,
    Message,
    SamplingParams,
)

if TYPE_CHECKING:
    from jaxserver.server import JAXServer

__version__ = "0.1.0"
__all__ = [
    "ChatRequest",
    "Chunk",
    "FinishReason",
    "GenerationRequest",
    "InstructRequest",
    "JAXServer",
    "LogitsProcessor",
    "Message",
    "Rendered",
    "SamplingParams",
    "ServerConfig",
]


def __getattr__(name: str) -> Any:
    """Imports the server, and with it JAX, at first use."""
    if name == "JAXServer":
        from jaxserver.server import JAXServer  # noqa: PLC0415  # lazily on purpose

        return JAXServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
