import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from jaxserver.adapters.checkpoints import hub
from jaxserver.ports.errors import ModelNotFound
from tests.waiting import eventually

COMMIT = "c" * 40
FILES: Mapping[str, bytes] = {
    "config.json": b"{}",
    "tokenizer.json": b"{ }",
    "chat_template.jinja": b"{{ messages }}",
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
    "model.safetensors.index.json": b"{}",
    "consolidated.safetensors": b"the same again",
    "pytorch_model.bin": b"and again",
    "model.gguf": b"and again",
    "onnx/model.onnx": b"and again",
    "README.md": b"words",
}
REPOS: Mapping[str, Mapping[str, bytes]] = {
    "owner/model": FILES,
    "owner/one-gguf": {"README.md": b"words", "tiny.gguf": b"GGUF"},
    "owner/many-ggufs": {"a.Q4_0.gguf": b"GGUF", "a.Q8_0.gguf": b"GGUF"},
    "owner/flax": {
        "config.json": b"{}",
        "flax_model-00001-of-00001.msgpack": b"tree",
        "flax_model.msgpack.index.json": b"{}",
        "pytorch_model.bin": b"and again",
    },
    "owner/large": {"config.json": b"{}", "model.safetensors": os.urandom(24 * 2**20)},
    "owner/torch": {"config.json": b"{}", "pytorch_model.bin": b"zip"},
    "owner/onnx": {"config.json": b"{}", "model.onnx": b"graph"},
}


class Hub(BaseHTTPRequestHandler):
    """The three addresses of the hub that a download asks for.

    Attributes:
        goes_on: Unset, large files stop in their middle until it is set.
    """

    goes_on = threading.Event()

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        if self.path.startswith("/api/models/"):
            owner, name = self.path.split("?")[0].split("/")[3:5]
            self.answer_info(f"{owner}/{name}")
        else:
            _, owner, name, _, _, file = self.path.split("/", 5)
            content = REPOS[f"{owner}/{name}"][file]
            etag = f'"{hash(file)}"'
            begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
            if begin:
                told = f"bytes {begin}-{len(content) - 1}/{len(content)}"
                headers = {"ETag": etag, "Content-Range": told}
                self.send(206, content[begin:], **headers)
            else:
                self.send(200, content, ETag=etag)

    def answer_info(self, repo: str) -> None:
        if repo == "owner/gated":
            self.send(403, b"", **{"X-Error-Code": "GatedRepo"})
        elif repo == "owner/broken":
            self.send(400, b"", **{"X-Error-Message": "no such thing"})
        elif repo not in REPOS:
            self.send(401, b"", **{"X-Error-Code": "RepoNotFound"})
        else:
            files = REPOS[repo].items()
            siblings = [{"rfilename": n, "size": len(c)} for n, c in files]
            info = {"id": repo, "sha": COMMIT, "siblings": siblings}
            self.send(200, json.dumps(info).encode())

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            middle = len(body) if len(body) < 2**20 else len(body) // 2
            self.wfile.write(body[:middle])
            if body[middle:]:
                self.goes_on.wait(30)
                with contextlib.suppress(OSError):  # whoever asked may have left
                    self.wfile.write(body[middle:])

    def log_message(self, format: str, *arguments: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def silent(stage: str, done: int, total: int) -> None:
    assert stage == "download"
    assert 0 <= done <= total


def test_settings_and_one_format_of_the_weights_are_fetched(
    endpoint: str, tmp_path: Path
) -> None:
    reports: list[tuple[str, int, int]] = []
    folder = hub.download(
        "owner/model", lambda *r: reports.append(r), endpoint=endpoint, cache=tmp_path
    )

    names = {path.name for path in folder.rglob("*")}
    assert names == {
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }
    total = sum(len(FILES[name]) for name in names)
    assert reports[0] == ("download", 0, total)
    assert reports[-1] == ("download", total, total)
    assert (folder / "model-00001-of-00002.safetensors").read_bytes() == b"first"


def test_a_repository_with_one_gguf_file_is_that_file(
    endpoint: str, tmp_path: Path
) -> None:
    folder = hub.download("owner/one-gguf", silent, endpoint=endpoint, cache=tmp_path)
    assert [path.name for path in folder.iterdir()] == ["tiny.gguf"]


def test_a_repository_of_a_flax_class_is_its_msgpack(
    endpoint: str, tmp_path: Path
) -> None:
    folder = hub.download("owner/flax", silent, endpoint=endpoint, cache=tmp_path)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "flax_model-00001-of-00001.msgpack",
        "flax_model.msgpack.index.json",
    }


def test_a_repository_of_pytorch_alone_is_its_own_files(
    endpoint: str, tmp_path: Path
) -> None:
    folder = hub.download("owner/torch", silent, endpoint=endpoint, cache=tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "pytorch_model.bin"}


def test_what_is_cached_is_enough_without_a_network(
    endpoint: str, tmp_path: Path
) -> None:
    first = hub.download("owner/one-gguf", silent, endpoint=endpoint, cache=tmp_path)
    nowhere = "http://127.0.0.1:9"
    again = hub.download("owner/one-gguf", silent, endpoint=nowhere, cache=tmp_path)
    assert again == first


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("owner/many-ggufs", "several .gguf files (a.Q4_0.gguf, a.Q8_0.gguf)"),
        ("owner/onnx", "no model*.safetensors, .gguf, flax_model*.msgpack"),
        ("owner/gated", "owner/gated is gated: accept its terms"),
        ("owner/none", "is no folder here and not on the hub; check the name"),
        ("owner/broken", "the hub is out of reach"),
        ("owner/a--b..c", "could not be fetched from the hub"),
    ],
)
def test_what_the_hub_does_not_give_says_the_next_step(
    repo: str, message: str, endpoint: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFound) as caught:
        hub.download(repo, silent, endpoint=endpoint, cache=tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("disabled", [True, False])
def test_the_librarys_own_progress_bars_are_left_as_they_were(
    disabled: bool, endpoint: str, tmp_path: Path
) -> None:
    (disable_progress_bars if disabled else enable_progress_bars)()
    try:
        hub.download("owner/one-gguf", silent, endpoint=endpoint, cache=tmp_path)
        assert are_progress_bars_disabled() == disabled
    finally:
        enable_progress_bars()


def test_without_a_network_a_folder_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="out of order: check the network"):
        hub.download(
            "owner/model", silent, endpoint="http://127.0.0.1:9", cache=tmp_path
        )


DOWNLOAD_IN_A_PROCESS = """
import sys
from pathlib import Path
from jaxserver.adapters.checkpoints import hub

endpoint, cache = sys.argv[1:]
hub.download("owner/large", print, endpoint=endpoint, cache=Path(cache))
"""


def test_a_killed_download_leaves_nothing_that_is_taken_for_a_model(
    endpoint: str, tmp_path: Path
) -> None:
    Hub.goes_on.clear()
    command = [sys.executable, "-c", DOWNLOAD_IN_A_PROCESS, endpoint, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as killed:
        assert eventually(lambda: sizes_of(tmp_path.rglob("*.incomplete")) > 2**20)
        killed.kill()
    Hub.goes_on.set()
    assert not list(tmp_path.rglob("*.safetensors"))

    folder = hub.download("owner/large", silent, endpoint=endpoint, cache=tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    assert content == REPOS["owner/large"]["model.safetensors"]


def sizes_of(files: Iterator[Path]) -> int:
    """Of those that nobody takes away meanwhile."""
    size = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            size += file.stat().st_size
    return size
