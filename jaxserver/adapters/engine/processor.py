"""What the processor can do that XLA does not find out by itself."""

import contextlib
import os
import re
from pathlib import Path

import jax

from jaxserver.core.ops.unsigned_product import multiply_both_on_cpu

_CPU_INFO = Path("/proc/cpuinfo")
_FLAGS = re.compile(r"^flags\b.*", re.MULTILINE)
_INSTRUCTIONS = frozenset({"amx_int8", "avx512_vnni"})
"""Of products of unsigned bytes with signed ones, as Linux calls them."""


def use_processor(told: Path = _CPU_INFO) -> None:
    """Has products compiled for the instructions that the processor has.

    Answers do not depend on it.

    Args:
        told: What Linux says of the processor; elsewhere nothing is known.
    """
    if jax.default_backend() == "cpu" and multiplies_bytes(told):
        multiply_both_on_cpu()


def compiler_options(told: Path = _CPU_INFO) -> dict[str, str | bool]:
    """Vectors as wide as the registers, where there are the instructions.

    The compiler takes half of that for processors that are slowed down by wide ones;
    none that has the instructions is by much. Answers do not depend on it.

    Args:
        told: As for `use_processor`.
    """
    is_wide = jax.default_backend() == "cpu" and multiplies_bytes(told)
    return {"xla_cpu_prefer_vector_width": "512"} if is_wide else {}


def multiplies_bytes(told: Path = _CPU_INFO) -> bool:
    """Whether it has an instruction for unsigned bytes with signed ones."""
    with contextlib.suppress(OSError):
        flags = _FLAGS.search(told.read_text())
        return flags is not None and not _INSTRUCTIONS.isdisjoint(flags.group().split())
    return False


def num_cores() -> int:
    """Processor cores the process may use; not every system can say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
