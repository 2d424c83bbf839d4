"""What a page or client asks for besides the text, checked."""

import dataclasses

from jaxserver.ports.errors import InvalidRequest
from jaxserver.ports.types import SamplingParams


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one request; None means "as the server is configured".

    Values come as the browser or client sent them, so nothing is taken for granted.

    Raises:
        InvalidRequest: A setting is of the wrong kind or out of its range.
    """

    system: str = ""
    greedy: bool = False
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None

    def __post_init__(self) -> None:
        checked_text("system", self.system)
        if not isinstance(self.greedy, bool):
            got = type(self.greedy).__name__
            raise InvalidRequest("greedy", got, "true or false")
        self.sampling_params()

    def sampling_params(self) -> SamplingParams:
        return SamplingParams(
            greedy=self.greedy,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
        )

    def sampling_fields(self) -> dict[str, float | int | None]:
        """What a handler gets only if it takes `**sampling`."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }


def checked_text(field: str, value: object) -> str:
    """The value, if it is text.

    Raises:
        InvalidRequest: It is not.
    """
    if not isinstance(value, str):
        raise InvalidRequest(field, type(value).__name__, "text")
    return value
