"""However a model's files are spoiled, it is served or refused with a named error.

Within a bound of time and of memory, and nothing is written outside of the cache.
"""

import contextlib
import datetime
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxserver.adapters.prompts.pieces import Pieces
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import (
    BrokenCheckpoint,
    JaxServerError,
    NoChatTemplate,
    UnsupportedMessages,
    UnsupportedModel,
)
from jaxserver.ports.progress import no_progress
from jaxserver.ports.types import Message
from jaxserver.wiring import load_model
from tests.property.limits import (
    no_more_memory_than,
    only_writing_into,
    ran_out_of_memory,
)
from tests.property.spoiling import (
    PLACES,
    Content,
    Files,
    spoiled_bytes,
    spoiled_folder,
    spoiled_value,
)
from tests.property.whole_models import (
    FOLDER,
    GGUF,
    METADATA,
    SHARDS,
    TOKENIZERS,
    gguf_bytes,
)

MORE_MEMORY_BYTES = 512 << 20
LONGEST = datetime.timedelta(seconds=10)
TEXT = "the quick brown fox 12\n caf\u00e9 <|im_end|> \U0001f642"
REFUSALS = (BrokenCheckpoint, UnsupportedModel, UnsupportedMessages)
spoiling = settings(
    max_examples=min(1000, hypothesis.settings().max_examples),
    deadline=LONGEST,
    suppress_health_check=list(HealthCheck),
)


class Sandbox:
    """A folder for models, and beside it the only one that may be written to."""

    def __init__(self, root: Path) -> None:
        self.root, self.model, self.cache = root, root / "model", root / "cache"
        self.cache.mkdir()
        self.refused = self.served = 0

    def outcome(self, files: Files) -> JaxServerError | None:
        """Serves these files; the error they are refused with, or None."""
        shutil.rmtree(self.model, ignore_errors=True)
        self.model.mkdir()
        for name, content in files.items():
            (self.model / name).write_bytes(content)
        try:
            with only_writing_into(self.cache):
                answer_once(self.model)
        except REFUSALS as error:
            if ran_out_of_memory(error):
                raise
            self.refused += 1
            return error
        finally:
            assert {path.name for path in self.root.iterdir()} == {"model", "cache"}
        self.served += 1
        return None


def answer_once(model: Path) -> None:
    """All that is done with a model's files, up to where code is compiled for it."""
    config = ServerConfig(
        model=str(model), slots=4, max_length=64, mesh_axes_shape=(1, 1, 1)
    )
    loaded = load_model(config, no_progress)
    tokenizer = loaded.tokenizer
    ids = tokenizer.encode(TEXT)
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    assert isinstance(tokenizer.decode(ids), str)
    assert all(isinstance(token, int) for token in tokenizer.eos_ids)
    loaded.weights.result()
    Pieces(loaded.formatter, config)
    with contextlib.suppress(NoChatTemplate):
        said = [Message(role="user", content=TEXT)]
        assert isinstance(loaded.formatter.format(said), str)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with (
        tempfile.TemporaryDirectory() as root,
        pytest.MonkeyPatch.context() as patch,
    ):
        sandbox = Sandbox(Path(root))
        for variable in ("JAXSERVER_CACHE", "HF_HOME", "HOME", "TMPDIR"):
            patch.setenv(variable, str(sandbox.cache))
        patch.setattr("sys.dont_write_bytecode", True)
        for files in (FOLDER, SHARDS, Files({"m.gguf": GGUF}), *TOKENIZERS.values()):
            assert sandbox.outcome(files) is None  # also imports whatever is needed
        with no_more_memory_than(MORE_MEMORY_BYTES):
            yield sandbox
        print(  # noqa: T201  # for those who want to know how many it were
            f"\nspoiled models: {sandbox.served} served, {sandbox.refused} refused"
        )


@spoiling
@given(files=spoiled_folder(FOLDER, "model.safetensors"))
def test_spoiled_safetensors_are_served_or_refused(
    sandbox: Sandbox, files: Files
) -> None:
    sandbox.outcome(files)


@spoiling
@given(content=spoiled_bytes(GGUF))
def test_a_spoiled_gguf_file_is_served_or_refused(
    sandbox: Sandbox, content: Content
) -> None:
    sandbox.outcome(Files({"m.gguf": content}))


@spoiling
@given(said=spoiled_value(METADATA))
def test_spoiled_metadata_of_a_gguf_file_are_served_or_refused(
    sandbox: Sandbox, said: Any
) -> None:
    hypothesis.assume(isinstance(said, Mapping))
    try:
        content = gguf_bytes(said)
    except Exception:  # what cannot be written down needs not be read
        hypothesis.reject()
    sandbox.outcome(Files({"m.gguf": content}))


@spoiling
@given(files=spoiled_folder(FOLDER, "config.json"))
def test_a_spoiled_configuration_is_served_or_refused(
    sandbox: Sandbox, files: Files
) -> None:
    sandbox.outcome(files)


@spoiling
@given(files=spoiled_folder(FOLDER, "tokenizer.json", "tokenizer_config.json"))
def test_a_spoiled_tokenizer_is_served_or_refused(
    sandbox: Sandbox, files: Files
) -> None:
    sandbox.outcome(files)


@spoiling
@given(files=st.one_of([*map(spoiled_folder, TOKENIZERS.values())]))
def test_spoiled_vocabularies_of_other_kinds_are_served_or_refused(
    sandbox: Sandbox, files: Files
) -> None:
    sandbox.outcome(files)


@spoiling
@given(files=spoiled_folder(SHARDS))
def test_spoiled_shards_are_served_or_refused(sandbox: Sandbox, files: Files) -> None:
    sandbox.outcome(files)


@pytest.mark.parametrize("place", PLACES)
def test_a_shard_outside_of_the_folder_is_refused(sandbox: Sandbox, place: str) -> None:
    index = "model.safetensors.index.json"
    written = json.dumps(place)[1:-1].encode()
    content = SHARDS[index].replace(b"model-00001-of-00002.safetensors", written)
    files = Files({**SHARDS, index: Content(content)})
    assert isinstance(sandbox.outcome(files), BrokenCheckpoint)
