"""On what, and in which numbers, a model is computed."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """The one place that says so; what is said holds for all functions of a model.

    Attributes:
        platform: As JAX names it: `cpu`, `gpu` or `tpu`.
        dtype: Of activations and of both factors of a product. Sums of products,
            norms, softmax and logits are float32 whatever it is.
        is_interpreted: Kernels are interpreted, where the platform is not at hand.
    """

    platform: str = "cpu"
    dtype: str = "float32"
    is_interpreted: bool = False


ON_CPU = Compute()
