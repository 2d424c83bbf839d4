"""Kernels in C++, compiled for the processor that they are to run on."""

import contextlib
import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jaxlib.version

from jaxserver.ports.errors import InvalidConfig

CPU_INFO = Path("/proc/cpuinfo")
SOURCES = Path(__file__).with_name("native")
KERNELS = ("int8_product", "attention")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fPIC", "-w"),
    # Multiplications are rounded before they are added to; nothing is trapped.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
ALLOWED = (
    f"xla; native with AVX512-VNNI, one of {', '.join(COMPILERS)} on the path, and a "
    "cache that can be written"
)
LONGEST_SECONDS = 300
LOGGER = logging.getLogger("jaxserver")
_LOADED: dict[str, ctypes.CDLL] = {}
"""What is registered, which a process can do once."""
_LOADING = threading.Lock()


def register_kernels(folder: Path) -> str:
    """Compiles the kernels, unless that has been done, and registers them with JAX.

    Args:
        folder: Where their library is kept.

    Returns:
        The library's name; `{name}_{kernel}` is what each is registered as.

    Raises:
        InvalidConfig: There is no compiler, or it cannot compile them, or they cannot
            be kept.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise InvalidConfig("kernels", "native, and no compiler is there", ALLOWED)
    try:
        library = folder / f"kernels-{_digest(compiler)}.so"
        with _LOADING:
            if library.stem not in _LOADED:
                loaded = _loaded(compiler, library)
                for kernel in KERNELS:
                    made = jax.ffi.pycapsule(getattr(loaded, kernel))
                    name = f"{library.stem}_{kernel}"
                    jax.ffi.register_ffi_target(name, made, "cpu")
                _LOADED[library.stem] = loaded
    except (OSError, subprocess.SubprocessError) as error:
        raise InvalidConfig("kernels", f"native, but {error}", ALLOWED) from error
    return library.stem


def _digest(compiler: str) -> str:
    """Of all that the library depends on."""
    digest = hashlib.sha256(_run([compiler, "--version"]).stdout.encode())
    for file in sorted(SOURCES.iterdir()):
        digest.update(file.read_bytes())
    versions = (jax.__version__, jaxlib.version.__version__)
    digest.update(repr((FLAGS, versions, _instructions())).encode())
    return digest.hexdigest()[:16]


def _instructions() -> list[str]:
    """As Linux says them of the processor: several may share a folder."""
    with contextlib.suppress(OSError):
        told = CPU_INFO.read_text().splitlines()
        return [line for line in told if line.startswith(("flags", "model"))][:3]
    return []


def _loaded(compiler: str, library: Path) -> ctypes.CDLL:
    """One that is there and cannot be loaded is made anew."""
    if library.exists():
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(library))
    library.parent.mkdir(parents=True, exist_ok=True)
    _compile(compiler, library)
    return ctypes.CDLL(str(library))


def _compile(compiler: str, library: Path) -> None:
    """Side by side, and by way of another name: what is there is whole."""
    LOGGER.info("kernels are compiled by %s", compiler)
    include = f"-I{jax.ffi.include_dir()}"
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:

        def compile_one(source: Path) -> str:
            part = str(Path(folder) / f"{source.stem}.o")
            _checked([compiler, *FLAGS, include, "-c", str(source), "-o", part])
            return part

        with ThreadPoolExecutor() as pool:
            parts = list(pool.map(compile_one, sorted(SOURCES.glob("*.cc"))))
        made = str(Path(folder) / library.name)
        _checked([compiler, *FLAGS, "-shared", *parts, "-o", made])
        os.replace(made, library)


def _checked(command: list[str]) -> None:
    run = _run(command)
    if run.returncode != 0:
        got = f"native, and {command[0]} says {_first_error(run.stderr)}"
        raise InvalidConfig("kernels", got, ALLOWED)


def _first_error(said: str) -> str:
    """Its first line where it names none itself, as when it cannot link."""
    lines = said.strip().splitlines() or ["nothing"]
    own = (line for line in lines if "error: " in line and "collect2" not in line)
    return next(own, lines[0])


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=LONGEST_SECONDS,
        env={**os.environ, "LC_ALL": "C"},
    )
