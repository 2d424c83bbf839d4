"""Functions that a kernel computes on a CPU where one is named."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir


def primitive_with_kernel(
    name: str, shape: Callable[..., Any], compiled: Callable[..., Any]
) -> Primitive:
    """A primitive whose parameter `kernel` says who computes it.

    Args:
        name: Its own.
        shape: Of what comes of its operands, with `kernel`.
        compiled: The same function of the operands for the compiler, which is taken
            where `kernel` is None, and on other devices; else `kernel` is what the
            kernel is registered as with `jax.ffi`.
    """
    primitive = Primitive(name)
    by_compiler = mlir.lower_fun(compiled, multiple_results=False)

    def lower(context: Any, *operands: Any, kernel: str | None) -> Any:
        return by_compiler(context, *operands)

    def lower_on_cpu(context: Any, *operands: Any, kernel: str | None) -> Any:
        rule = by_compiler if kernel is None else jax.ffi.ffi_lowering(kernel)
        return rule(context, *operands)

    def run(*operands: Any, kernel: str | None) -> Any:
        bind = jax.jit(primitive.bind, static_argnames="kernel")
        return bind(*operands, kernel=kernel)

    primitive.def_abstract_eval(shape)
    primitive.def_impl(run)
    mlir.register_lowering(primitive, lower)
    mlir.register_lowering(primitive, lower_on_cpu, platform="cpu")
    return primitive
