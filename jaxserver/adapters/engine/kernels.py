"""Kernels in C++, compiled for the processor that they are to run on."""

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

from jaxserver.core.ops.attention import attend_on_cpu_by
from jaxserver.core.ops.int8_product import multiply_on_cpu_by
from jaxserver.ports.errors import InvalidConfig

CPU_INFO = Path("/proc/cpuinfo")
SOURCES = Path(__file__).with_name("native")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-w"),
    # Multiplications are rounded before they are added to; nothing is trapped.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
KERNELS = {"int8_product": multiply_on_cpu_by, "attention": attend_on_cpu_by}
"""By name in the library, what uses them."""
_LOADED: dict[str, ctypes.CDLL] = {}
"""What is registered, which a process can do once."""


def use_kernels(name: str) -> None:
    """Has what is compiled from now on use the kernels of a library.

    Args:
        name: The library's; if it is empty, there are none but the compiler's.
    """
    for kernel, use in KERNELS.items():
        use(f"{name}_{kernel}" if name else None)


def register_kernels(folder: Path) -> str:
    """Compiles the kernels, unless that has been done, and registers them with JAX.

    Args:
        folder: Where their library is kept.

    Returns:
        The library's name; `{name}_{kernel}` is what each is registered as.

    Raises:
        InvalidConfig: There is no compiler, or it cannot compile them.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise _refused("native, and no compiler is there")
    library = folder / f"kernels-{_digest(compiler)}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _compile(compiler, library)
    if library.stem not in _LOADED:
        _LOADED[library.stem] = loaded = ctypes.CDLL(str(library))
        for kernel in KERNELS:
            made = jax.ffi.pycapsule(getattr(loaded, kernel))
            jax.ffi.register_ffi_target(f"{library.stem}_{kernel}", made, "cpu")
    return library.stem


def _digest(compiler: str) -> str:
    """Of all that the library depends on."""
    said = subprocess.run([compiler, "--version"], capture_output=True, check=False)
    digest = hashlib.sha256(said.stdout)
    for file in sorted(SOURCES.iterdir()):
        digest.update(file.read_bytes())
    digest.update(repr((FLAGS, jax.__version__, _instructions())).encode())
    return digest.hexdigest()[:16]


def _instructions() -> list[str]:
    """As Linux says them of the processor: several may share a folder."""
    with contextlib.suppress(OSError):
        told = CPU_INFO.read_text().splitlines()
        return [line for line in told if line.startswith(("flags", "model"))][:3]
    return []


def _compile(compiler: str, library: Path) -> None:
    """By way of another name: what is there is whole."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        sources = sorted(map(str, SOURCES.glob("*.cc")))
        include = f"-I{jax.ffi.include_dir()}"
        command = [compiler, *FLAGS, include, *sources, "-o", str(made)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            said = [line for line in run.stderr.splitlines() if "error" in line]
            raise _refused(f"native, and {compiler} says {(said or ['nothing'])[0]}")
        os.replace(made, library)


def _refused(got: str) -> InvalidConfig:
    compilers = ", ".join(COMPILERS)
    allowed = f"xla; native with AVX512-VNNI and one of {compilers} on the path"
    return InvalidConfig("kernels", got, allowed)
