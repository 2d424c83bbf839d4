import pickle

import pytest

from jaxserver.ports import errors

CASES = [
    (
        errors.InvalidRequest("seed", "-1", "a number"),
        "invalid_request",
        "seed: got -1, allowed is a number",
    ),
    (
        errors.InvalidConfig("port", "-1", "a number"),
        "invalid_config",
        "port: got -1, allowed is a number",
    ),
    (
        errors.PromptTooLong(9, 8),
        "prompt_too_long",
        "the prompt has 9 tokens, at most 8 leave room for an answer",
    ),
    (errors.UnsupportedMessages("two users"), "unsupported_messages", "two users"),
    (
        errors.NoChatTemplate("format_chat"),
        "no_chat_template",
        "the model has no chat template: send raw text to /v1/completions, or "
        "subclass JAXServer and write the method `format_chat`",
    ),
    (
        errors.Unavailable("busy", 2),
        "unavailable",
        "busy, try again in 2 s",
    ),
    (errors.ServerFull("full", 3), "server_full", "full, try again in 3 s"),
    (errors.NotReady("loading", 4), "not_ready", "loading, try again in 4 s"),
    (errors.EngineFailed("died"), "engine_failed", "died"),
    (
        errors.BrokenCheckpoint("a.gguf", "norm", expected="3", found="4"),
        "broken_checkpoint",
        "a.gguf, tensor norm: expected 3, found 4",
    ),
    (
        errors.BrokenCheckpoint("a.gguf", None, expected="GGUF", found="PK"),
        "broken_checkpoint",
        "a.gguf: expected GGUF, found PK",
    ),
    (
        errors.UnsupportedModel("bert", "llama"),
        "unsupported_model",
        "bert cannot be served; supported: llama",
    ),
    (errors.ModelNotFound("no such"), "model_not_found", "no such"),
]


@pytest.mark.parametrize(("error", "code", "message"), CASES)
def test_an_error_has_a_code_and_says_what_is_wrong(
    error: errors.JaxServerError, code: str, message: str
) -> None:
    assert (error.code, str(error)) == (code, message)
    assert isinstance(error, errors.JaxServerError)


@pytest.mark.parametrize(("error", "code", "message"), CASES)
def test_an_error_crosses_to_another_process_whole(
    error: errors.JaxServerError, code: str, message: str
) -> None:
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is type(error)
    assert (arrived.code, str(arrived)) == (code, message)
    assert vars(arrived) == vars(error)


def test_what_can_be_tried_again_says_when() -> None:
    for error in (errors.ServerFull("full", 3), errors.NotReady("loading", 3)):
        assert isinstance(error, errors.Unavailable)
        assert error.retry_after_seconds == 3


def test_errors_keep_what_they_were_made_of() -> None:
    too_long = errors.PromptTooLong(9, 8)
    assert (too_long.length, too_long.room) == (9, 8)
    broken = errors.BrokenCheckpoint("a", "b", expected="c", found="d")
    parts = (broken.file, broken.tensor, broken.expected, broken.found)
    assert parts == ("a", "b", "c", "d")
    unsupported = errors.UnsupportedModel("bert", "llama")
    assert (unsupported.model, unsupported.supported) == ("bert", "llama")
    assert errors.NoChatTemplate("format_chat").method == "format_chat"
