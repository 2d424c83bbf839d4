"""On what, and in which numbers, a model is computed."""

import dataclasses

AMPERE = 8
"""Major number of that generation's compute capability."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """The one place that says so; what is said holds for all functions of a model.

    Attributes:
        platform: `cpu`; `cuda`, a GPU that kernels are written for, which are NVIDIA's
            from Ampere on; or any other that JAX has.
        dtype: Of activations and of both factors of a product, which have all of its
            bits. Sums of products, norms, softmax and logits are float32 in any case.
        is_interpreted: Kernels are interpreted, where the platform is not at hand.
        kernels: On a CPU, the name of a library of kernels, each of which is registered
            with `jax.ffi` as `{kernels}_{kernel}`; the compiler's own code if empty.
        adds_products: On a CPU, sums of products that are written out are known to have
            the bits of a library's: both add a product without rounding it first.
    """

    platform: str = "cpu"
    dtype: str = "float32"
    is_interpreted: bool = False
    kernels: str = ""
    adds_products: bool = False

    @property
    def rounds_float32(self) -> bool:
        """Unless JAX is told otherwise, the factors of products in float32 are cut."""
        return self.platform != "cpu" and self.dtype == "float32"

    def kernel(self, name: str) -> str | None:
        """What a kernel is registered as; None where it is the compiler's code."""
        return f"{self.kernels}_{name}" if self.kernels else None


ON_CPU = Compute()


def compute_on(
    platform: str, capability: str, dtype: str, *, adds_products: bool = False
) -> Compute:
    """What suits a device, where the model is of a type.

    A CPU has no fast 16-bit arithmetic.

    Args:
        platform: As JAX names it: `cpu`, `gpu`, `tpu`.
        capability: What the device says of its own: NVIDIA's GPUs a number.
        dtype: Of the model.
        adds_products: See `Compute`.
    """
    if platform == "cpu":
        return dataclasses.replace(ON_CPU, adds_products=adds_products)
    generation = capability.split(".")[0]
    has_kernels = generation.isdigit() and int(generation) >= AMPERE
    return Compute(platform="cuda" if has_kernels else platform, dtype=dtype)
