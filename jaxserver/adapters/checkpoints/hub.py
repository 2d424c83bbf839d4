"""Fetches a model from the Hugging Face hub into the hub library's own cache."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from jaxserver.adapters.checkpoints.download_progress import report_growth
from jaxserver.ports.errors import ModelNotFound
from jaxserver.ports.progress import Progress

_SETTINGS_SUFFIXES = (".json", ".model", ".txt", ".jinja")


def download(
    repo: str,
    progress: Progress,
    *,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> Path:
    """The folder with a repository's configuration, tokenizer and weights.

    What is in the hub library's cache is not fetched again, and is enough offline.
    `repo` is `owner/name`; the library itself says where its hub and its cache are,
    unless `endpoint` and `cache` do.

    Raises:
        ModelNotFound: The hub does not have it, does not give it, or is out of reach.
    """
    cache = cache or Path(constants.HF_HUB_CACHE)
    try:
        with _no_progress_bars():
            return _download(repo, progress, endpoint, cache)
    except GatedRepoError as error:
        raise ModelNotFound(
            f"{repo} is gated: accept its terms on the hub's page of the model, then "
            "log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"{repo} is no folder here and not on the hub; check the name, and for a "
            "private model log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelNotFound(
            f"{repo} is no folder here, and the hub is out of reach or out of order: "
            "check the network, or give the path of a folder or .gguf file as --model"
        ) from error
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelNotFound(
            f"{repo} could not be fetched from the hub: {lines[0]}; try again, or give "
            "the path of a folder or .gguf file as --model"
        ) from error


def _download(repo: str, progress: Progress, endpoint: str | None, cache: Path) -> Path:
    try:
        found = HfApi(endpoint=endpoint).model_info(repo, files_metadata=True)
    except (GatedRepoError, RepositoryNotFoundError):
        raise
    except OSError:  # no network; what is in the cache may be enough
        return Path(snapshot_download(repo, cache_dir=cache, local_files_only=True))
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    wanted = _wanted(repo, list(sizes))
    blobs = cache / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    with report_growth(blobs, sum(sizes[name] for name in wanted), progress):
        folder = snapshot_download(
            repo, endpoint=endpoint, cache_dir=cache, allow_patterns=wanted
        )
    return Path(folder)


def _wanted(repo: str, names: Sequence[str]) -> list[str]:
    """Leaves out other formats of the same weights, which would double the download."""
    here = [name for name in names if "/" not in name]
    settings = [n for n in here if PurePosixPath(n).suffix in _SETTINGS_SUFFIXES]
    weights = [n for n in here if PurePosixPath(n).match("model*.safetensors")]
    weights = weights or [n for n in here if n.endswith(".gguf")]
    for form in ("flax_model*.msgpack", "pytorch_model*.bin"):
        weights = weights or [n for n in here if PurePosixPath(n).match(form)]
    is_ambiguous = len(weights) > 1 and weights[0].endswith(".gguf")
    if not weights or is_ambiguous:
        has = (
            f"several .gguf files ({', '.join(weights)}); download one with "
            f"`hf download {repo} FILE` and give its path as --model"
            if is_ambiguous
            else "no model*.safetensors, .gguf, flax_model*.msgpack or "
            "pytorch_model*.bin, which are the weights that can be read"
        )
        raise ModelNotFound(f"the hub's {repo} has {has}")
    return settings + weights


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Progress is reported through the port; two bars would draw over each other."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
