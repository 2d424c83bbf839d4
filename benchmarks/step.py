"""What a decode step and a prefill consist of, and how near each part is to the limit.

Every part is run by itself, as often as it comes in a step, with its bytes and its
operations counted; the limits are this machine's own, measured before.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # This folder would be first on the path, and `http.py` the library's own `http`.
    sys.path[0] = str(Path(__file__).parents[1])

import jax
import jax.numpy as jnp
import numpy as np

from jaxserver import wiring
from jaxserver.adapters.engine.processor import (
    compiler_options,
    multiplies_bytes,
    use_processor,
)
from jaxserver.core.compute import compute_on
from jaxserver.core.config import MIN_CALL_TOKENS, PREFILL_LENGTHS
from jaxserver.core.ops.attention import attention
from jaxserver.core.ops.fp8 import Fp8Weight
from jaxserver.core.ops.linear import Products, linear
from jaxserver.core.ops.norms import rms_norm
from jaxserver.core.ops.paged import LayerCache
from jaxserver.core.ops.quantize import Int8Weight
from jaxserver.core.ops.unsigned_product import unsigned_product
from jaxserver.core.sampling import choose_rows
from jaxserver.core.sampling_arrays import History, sampling_row
from jaxserver.ports.config import DEFAULT_MODEL, ServerConfig
from jaxserver.ports.model import TokenBatch
from jaxserver.ports.progress import no_progress
from jaxserver.ports.types import SamplingParams

HEAD = (
    "part",
    "times",
    "ms",
    "of the step",
    "GB/s",
    "of copying",
    "G/s",
    "of products",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a step.

    Attributes:
        times: How often it comes in a step.
        seconds: Of all times together.
        bytes: That it has to read and write, once each, of all times.
        operations: Multiplications and additions in products, of all times.
    """

    name: str
    times: int
    seconds: float
    bytes: int
    operations: int


def timed(run: Callable[..., Any], *inputs: Any, times: int) -> float:
    """The median time of a call, after one that compiles."""
    jax.block_until_ready(run(*inputs))
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        jax.block_until_ready(run(*inputs))
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def compiled(run: Callable[..., Any], **more: Any) -> Callable[..., Any]:
    """As the server compiles its steps."""
    return jax.jit(run, compiler_options=compiler_options(), **more)


def copy_rate(times: int) -> float:
    """Bytes read and written a second, of an array that no cache holds."""
    x = jnp.zeros(2**26, jnp.float32)
    return 2 * x.nbytes / timed(jax.jit(lambda x: x + 1), x, times=times)


def product_rate(dtype: Any, times: int) -> float:
    """Operations a second of one large product."""
    x = jnp.ones((1024, 1024), dtype)
    if dtype == jnp.int8:
        inputs: Any = (x.astype(jnp.uint8), x, jnp.sum(x, axis=1, dtype=jnp.int32))
        return float(
            2 * 1024**3 / timed(jax.jit(unsigned_product), *inputs, times=times)
        )
    return float(2 * 1024**3 / timed(jax.jit(lambda x: x @ x.T), x, times=times))


class Measured:
    """One model's parts, run by themselves with as many tokens as in a step."""

    def __init__(self, model: wiring.Model, rows: int, time: int, times: int) -> None:
        params: Any = model.params
        self.model, self.params, self.times = model, params, times
        self.num_layers = len(params.layers)
        self.rows, self.time = rows, time
        least = max(MIN_CALL_TOKENS, rows * time)
        self.x = jnp.ones((least, params.norm.shape[0]), jnp.float32)

    def parts(self, context: int) -> Iterator[Part]:
        """All of them; each row holds `context` tokens."""
        layer = self.params.layers[0]
        head = self.params.embedding if self.params.head is None else self.params.head
        yield self._product("query, key, value", layer.qkv, self.num_layers)
        yield self._attention(context)
        yield self._product("attention's output", layer.out, self.num_layers)
        yield self._product("gate and up", layer.mlp.gate_up, self.num_layers)
        yield self._product("down", layer.mlp.down, self.num_layers)
        yield self._norm()
        yield self._product("vocabulary", head, 1, tokens=self.rows)
        yield self._choice()

    def _part(
        self, name: str, count: int, run: Any, inputs: Sequence[Any], operations: int
    ) -> Part:
        outputs = jax.eval_shape(run, *inputs)
        leaves = jax.tree.leaves((inputs, outputs))
        return Part(
            name=name,
            times=count,
            seconds=count * timed(compiled(run), *inputs, times=self.times),
            bytes=count * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
            operations=count * operations,
        )

    def _product(
        self, name: str, weight: Any, count: int, tokens: int | None = None
    ) -> Part:
        is_int8 = isinstance(weight, Int8Weight)
        tokens = tokens or self.rows * self.time
        padded = max(MIN_CALL_TOKENS, tokens)
        has_scale = is_int8 or isinstance(weight, Fp8Weight)
        values = weight.values if has_scale else weight
        num_out = weight.scale.ndim if has_scale else OUTPUT_AXES.get(name, 1)
        x = jnp.ones((padded, *values.shape[num_out:]), jnp.float32)
        operations = 2 * values.size * (2 * tokens if is_int8 else padded)
        run = functools.partial(linear, products=Products(tokens=tokens))
        return self._part(name, count, run, (x, weight), operations)

    def _attention(self, context: int) -> Part:
        cache: Any = self.model.fns.init_cache(self.rows)
        # Those of one layer, which lie closer here than among others.
        keys, values = cache.keys[0][:, :1], cache.values[0][:, :1]
        _, _, blocks, kv_heads, head_dim, block = keys.shape
        groups = self.params.layers[0].qkv
        groups = jax.tree.leaves(groups)[0].shape[1] - 2
        queries = jnp.ones((self.rows, self.time, kv_heads, groups, head_dim))
        new = jnp.arange(context - self.time, context, dtype=jnp.int32)
        positions = jnp.broadcast_to(new, (self.rows, self.time))
        held = jnp.full(self.rows, context, jnp.int32)

        known = multiplies_bytes()
        compute = compute_on("cpu", "", "float32", adds_products=known)
        attend = attention(compute, head_dim, None).attend

        def run(queries: Any, keys: Any, values: Any) -> Any:
            return attend(queries, LayerCache(keys, values), None, positions, held)

        heads = self.rows * self.time * kv_heads * groups
        part = self._part(
            "attention",
            self.num_layers,
            run,
            (queries, keys, values),
            4 * heads * head_dim * context,
        )
        seen = 2 * keys.nbytes * context // (blocks * block) * self.num_layers
        return dataclasses.replace(part, bytes=seen)

    def _norm(self) -> Part:
        inputs = (self.x, self.params.norm)
        norm = functools.partial(rms_norm, eps=1e-5)
        return self._part("norms", 2 * self.num_layers + 1, norm, inputs, 0)

    def _choice(self) -> Part:
        vocab, length = self.model.fns.vocab_size, self.model.fns.max_len
        chance = np.random.default_rng(0)
        logits = jnp.asarray(chance.standard_normal((self.rows, vocab)), jnp.float32)
        usual = SamplingParams(temperature=0.7, top_k=50, top_p=0.95)
        wishes = [sampling_row(usual, seed) for seed in range(self.rows)]
        sampling = jax.tree.map(lambda *leaves: jnp.stack(leaves), *wishes)
        tokens = jnp.zeros((self.rows, length), jnp.int32)
        held = jnp.full(self.rows, 8, jnp.int32)
        history, wanted = History(tokens, held, held), jnp.ones(self.rows, jnp.bool_)

        def run(logits: Any) -> Any:
            return choose_rows(logits, sampling, history, wanted).token

        return self._part("choosing a token", 1, run, (logits,), 0)

    def whole(self, context: int) -> float:
        """Seconds of the whole model's part of a step, its cache in place.

        Two calls compile: with a new cache, and with one that a call gave back.
        """
        zeros = np.zeros((self.rows, self.time), np.int32)
        full = functools.partial(np.full, self.rows, dtype=np.int32)
        arrays: dict[str, Any] = dict(
            tokens=zeros,
            start=full(context - self.time),
            length=full(self.time),
            page_table=None,
            logits_at=zeros[:, :1],
        )
        batch = TokenBatch(**arrays)
        run = compiled(self.model.fns.extend, donate_argnums=1)
        cache: Any = self.model.fns.init_cache(self.rows)
        taken = []
        for _ in range(self.times + 2):
            began = time.perf_counter()
            _, cache = jax.block_until_ready(run(self.params, cache, batch))
            taken.append(time.perf_counter() - began)
        return statistics.median(taken[2:])


OUTPUT_AXES = {"query, key, value": 3, "gate and up": 2}
"""How many dimensions of a float weight are its output; one in other products."""


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    use_processor()
    copying = copy_rate(args.times)
    products = {
        "none": product_rate(jnp.float32, args.times),
        "int8": product_rate(jnp.int8, args.times),
    }
    print(f"Copying: {copying / 1e9:.1f} GB/s.", end=" ")
    print(f"Products: {products['none'] / 1e9:.0f} GFLOP/s in float32,", end=" ")
    print(f"{products['int8'] / 1e9:.0f} Gop/s in int8.")
    written = []
    for quantize in args.quantize:
        model = loaded(args.model, quantize)
        for rows, length in args.shapes:
            measured = Measured(model, rows, length, args.times)
            context = max(args.context, length)
            parts, whole = list(measured.parts(context)), measured.whole(context)
            print(f"\n{rows} rows of {length} tokens, weights {quantize}, ", end="")
            print(f"{context} tokens held: {1000 * whole:.1f} ms without the choice.\n")
            print(table(parts, (copying, products[quantize])))
            each = [dataclasses.asdict(part) for part in parts]
            what = {"quantize": quantize, "rows": rows, "time": length}
            written.append({**what, "seconds": whole, "parts": each})
    if args.json is not None:
        limits = {"copying": copying, "products": products}
        args.json.write_text(json.dumps({**limits, "steps": written}, indent=1))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", default=DEFAULT_MODEL)
    add("--quantize", type=lambda text: text.split(","), default=["none", "int8"])
    add(
        "--shapes",
        type=shapes,
        default=shapes(f"1x1,16x1,1x{PREFILL_LENGTHS[-1]}"),
        help="rows x tokens",
    )
    add("--context", type=int, default=256)
    add("--times", type=int, default=20)
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args(arguments)


def shapes(text: str) -> list[tuple[int, int]]:
    pairs = (part.split("x") for part in text.split(","))
    return [(int(rows), int(length)) for rows, length in pairs]


def loaded(model: str, quantize: str) -> wiring.Model:
    sizes: dict[str, Any] = dict(max_length=2048, mesh_axes_shape=(1, 1, 1))
    config = ServerConfig(model=model, dtype="fp32", quantize=quantize, **sizes)
    return wiring.load_model(config, no_progress)


def table(parts: Sequence[Part], limits: tuple[float, float]) -> str:
    copying, products = limits
    total = sum(part.seconds for part in parts)

    def row(part: Part) -> tuple[str, ...]:
        moved, done = part.bytes / part.seconds, part.operations / part.seconds
        return (
            *(part.name, str(part.times), f"{1000 * part.seconds:.2f}"),
            *(f"{part.seconds / total:.0%}", f"{moved / 1e9:.1f}"),
            *(f"{moved / copying:.0%}", f"{done / 1e9:.1f}", f"{done / products:.0%}"),
        )

    rows = [HEAD, ("---", *("--:",) * (len(HEAD) - 1)), *map(row, parts)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    main()
