"""What the processor can do that XLA does not find out by itself."""

import contextlib
import re
from pathlib import Path

import jax

from jaxserver.core.ops.unsigned_product import multiply_both_on_cpu

_CPU_INFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = re.compile(r"^flags\b.*\b(avx512_vnni|amx_int8)\b", re.MULTILINE)


def use_processor(told: Path = _CPU_INFO) -> None:
    """Has products compiled for the instructions that the processor has.

    Answers do not depend on it.

    Args:
        told: What Linux says of the processor; elsewhere nothing is known.
    """
    if multiplies_both(told):
        multiply_both_on_cpu()


def compiler_options(told: Path = _CPU_INFO) -> dict[str, str | bool]:
    """Vectors as wide as the registers, where there are the instructions.

    The compiler takes half of that for processors that are slowed down by wide ones;
    none that has the instructions is by much. Answers do not depend on it.

    Args:
        told: As for `use_processor`.
    """
    is_wide = jax.default_backend() == "cpu" and multiplies_both(told)
    return {"xla_cpu_prefer_vector_width": "512"} if is_wide else {}


def multiplies_both(told: Path = _CPU_INFO) -> bool:
    """Whether it multiplies unsigned bytes with signed ones."""
    with contextlib.suppress(OSError):
        return _INSTRUCTIONS.search(told.read_text()) is not None
    return False
