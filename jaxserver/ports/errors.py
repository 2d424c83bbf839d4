"""What can go wrong, as classes a caller can act on, each with a stable code."""

from typing import Any, ClassVar


def _remade(
    kind: type["JaxServerError"], args: tuple[Any, ...], state: dict[str, Any]
) -> "JaxServerError":
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error


class JaxServerError(Exception):
    """An error with a code that stays the same from version to version."""

    code: ClassVar[str] = "error"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as it is, so that it can cross from one process to another."""
        return _remade, (type(self), self.args, vars(self))


class InvalidRequest(JaxServerError):
    """A field of a request is wrong.

    Attributes:
        field: The field, as the caller wrote it.
        allowed: What the field takes, as the end of a sentence.
    """

    code = "invalid_request"

    def __init__(self, field: str, got: str, allowed: str) -> None:
        super().__init__(f"{field}: got {got}, allowed is {allowed}")
        self.field = field
        self.got = got
        self.allowed = allowed


class InvalidConfig(JaxServerError):
    """A key of the configuration is unknown or has a value it cannot take."""

    code = "invalid_config"

    def __init__(self, key: str, got: str, allowed: str) -> None:
        super().__init__(f"{key}: got {got}, allowed is {allowed}")
        self.key = key
        self.got = got
        self.allowed = allowed


class PromptTooLong(JaxServerError):
    """The prompt leaves no room for a new token.

    Attributes:
        length: Tokens in the prompt.
        room: Most tokens a prompt may have.
    """

    code = "prompt_too_long"

    def __init__(self, length: int, room: int) -> None:
        super().__init__(
            f"the prompt has {length} tokens, at most {room} leave room for an answer"
        )
        self.length = length
        self.room = room


class UnsupportedMessages(JaxServerError):
    """The conversation cannot be put into words by the formatter in use."""

    code = "unsupported_messages"


class NoChatTemplate(JaxServerError):
    """The checkpoint says nothing about how to write a conversation down."""

    code = "no_chat_template"

    def __init__(self, method: str) -> None:
        super().__init__(
            "the model has no chat template: send raw text to /v1/completions, or "
            f"subclass JAXServer and write the method `{method}`"
        )
        self.method = method


class Unavailable(JaxServerError):
    """The request is fine, but cannot be taken at this moment.

    Attributes:
        retry_after_seconds: When to try again.
    """

    code = "unavailable"

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(f"{message}, try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class ServerFull(Unavailable):
    """The queue holds as many requests as it may."""

    code = "server_full"


class NotReady(Unavailable):
    """The model is being loaded or compiled, or the server is shutting down."""

    code = "not_ready"


class DeadlineExceeded(JaxServerError):
    """The answer was not finished in the time that the request allowed for it."""

    code = "deadline_exceeded"

    def __init__(self) -> None:
        super().__init__("the answer was not finished within deadline_seconds")


class EngineFailed(JaxServerError):
    """The engine could not finish the request; it may be sent again."""

    code = "engine_failed"


class ProfileRunning(JaxServerError):
    """Only one profile can be taken at a time in one process."""

    code = "profile_running"

    def __init__(self) -> None:
        super().__init__("a profile is being taken already, try again when it is done")


class BrokenCheckpoint(JaxServerError):
    """A checkpoint's file does not hold what it should.

    Attributes:
        file: Path of the file.
        tensor: The tensor, or None where the file as a whole is broken.
    """

    code = "broken_checkpoint"

    def __init__(
        self, file: str, tensor: str | None, *, expected: str, found: str
    ) -> None:
        where = file if tensor is None else f"{file}, tensor {tensor}"
        super().__init__(f"{where}: expected {expected}, found {found}")
        self.file = file
        self.tensor = tensor
        self.expected = expected
        self.found = found


class UnsupportedModel(JaxServerError):
    """The model is of a kind, or has a setting, that cannot be served."""

    code = "unsupported_model"

    def __init__(self, model: str, supported: str) -> None:
        super().__init__(f"{model} cannot be served; supported: {supported}")
        self.model = model
        self.supported = supported


class ModelNotFound(JaxServerError):
    """The model is neither here nor could it be fetched; says the next step."""

    code = "model_not_found"
