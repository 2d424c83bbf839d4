"""What the processor can do that XLA does not find out by itself."""

import contextlib
import os
import re
from pathlib import Path

import jax

from jaxserver.core.ops.unsigned_product import multiply_both_on_cpu

_CPU_INFO = Path("/proc/cpuinfo")
_FLAGS = re.compile(r"^flags\b.*", re.MULTILINE)
_INSTRUCTIONS = ("amx_int8", "avx512_vnni")
"""As Linux calls them, the faster first."""


def use_processor(told: Path = _CPU_INFO) -> None:
    """Has products compiled for the instructions that the processor has.

    Answers do not depend on it.

    Args:
        told: What Linux says of the processor; elsewhere nothing is known.
    """
    if jax.default_backend() == "cpu" and byte_products(told) is not None:
        multiply_both_on_cpu()


def compiler_options(told: Path = _CPU_INFO) -> dict[str, str | bool]:
    """Vectors as wide as the registers, where there are the instructions.

    The compiler takes half of that for processors that are slowed down by wide ones;
    none that has the instructions is by much. Answers do not depend on it.

    Args:
        told: As for `use_processor`.
    """
    is_wide = jax.default_backend() == "cpu" and byte_products(told) is not None
    return {"xla_cpu_prefer_vector_width": "512"} if is_wide else {}


def byte_products(told: Path = _CPU_INFO) -> str | None:
    """By what it multiplies unsigned bytes with signed ones; None if it does not."""
    with contextlib.suppress(OSError):
        flags = _FLAGS.search(told.read_text())
        has = flags.group().split() if flags else ()
        return next((name for name in _INSTRUCTIONS if name in has), None)
    return None


def num_cores() -> int:
    """Processor cores the process may use; not every system can say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
