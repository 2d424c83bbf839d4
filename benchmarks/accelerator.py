"""How far what is built for this device is from what is built for a CPU, and how fast.

Weights are random: errors are those of the arithmetic. A row is run by prefill and then
again by decode steps, whose logits should be those of prefill.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    # This folder would be first on the path, and `http.py` the library's own `http`.
    sys.path[0] = str(Path(__file__).parents[1])

import jax
import numpy as np

from jaxserver.core.compute import ON_CPU, Compute, compute_on
from jaxserver.core.config import ModelConfig
from jaxserver.core.kv_cache import cache_dtype
from jaxserver.core.ops.fp8 import FP8, quantize_to_fp8
from jaxserver.core.ops.quantize import quantize as quantize_to_int8
from jaxserver.core.params import ParamSpec, init_params, is_spec, param_specs
from jaxserver.core.transformer import transformer_fns
from jaxserver.ports.config import DTYPES
from jaxserver.ports.model import ModelFns, TokenBatch

HEAD = ("weights", "pages", "prefill's error", "decode's error", "decode = prefill")
TIMES = ("decode step, ms", "prefill, ms")
SIZES = {
    "tiny": (1, 64, 128, 4, 2, 16),
    "135m": (30, 576, 1536, 9, 3, 64),
    "1b": (16, 2048, 8192, 32, 8, 64),
}
"""Layers, width, width inside the MLP, heads, key-value heads and width of a head."""
KINDS = ("none", "int8", "fp8")
MAX_LEN, PROMPT, ANSWER = 1024, 128, 16
PAGE = 128


class Found(NamedTuple):
    """Of one row, and of all of them at once."""

    by_prefill: np.ndarray[Any, Any]
    by_decode: np.ndarray[Any, Any]
    decode_seconds: float
    prefill_seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    config, device = config_of(args.size), jax.devices()[0]
    capability = getattr(device, "compute_capability", "")
    compute = compute_on(device.platform, capability, DTYPES[args.dtype])
    print(f"{device.device_kind}: {compute}, {args.rows} rows\n")
    for cells in (HEAD + TIMES, ("---",) * len(HEAD + TIMES)):
        print("|", " | ".join(cells), "|")
    floats = init_params(config, seed=0)
    kinds = {"none": compute.dtype, "int8": "int8", "fp8": FP8}
    for kept in (kinds[quantize] for quantize in args.quantize):
        params = kept_in(config, floats, kept)
        cpu = jax.devices("cpu")[0]
        with jax.default_device(cpu):
            there = jax.device_put(params, cpu)
            expected = run(build(config, kept, ON_CPU, None), there, 1)
        for page_size in (None, PAGE):
            fns = build(config, kept, compute, page_size)
            found = run(fns, jax.device_put(params, device), args.rows)
            print("|", " | ".join(row(kept, page_size, found, expected)), "|")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="135m")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument(
        "--quantize", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND"
    )
    return parser.parse_args(arguments)


def config_of(size: str) -> ModelConfig:
    num_layers, embed, mlp, num_heads, num_kv_heads, head_dim = SIZES[size]
    return ModelConfig(
        vocab_size=1024 if size == "tiny" else 49152,
        num_layers=num_layers,
        embed=embed,
        mlp=mlp,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_len=MAX_LEN,
    )


def kept_in(config: ModelConfig, floats: Any, kept: str) -> Any:
    """The weights as they would be loaded, on the host."""
    makers: dict[str, Any] = {"int8": quantize_to_int8, FP8: quantize_to_fp8}

    def made(spec: ParamSpec, leaf: Any) -> Any:
        if kept not in makers:
            return np.asarray(leaf.astype(kept))
        host = np.asarray(leaf)
        return makers[kept](host, spec.num_out) if spec.num_out else host

    return jax.tree.map(made, param_specs(config), floats, is_leaf=is_spec)


def build(
    config: ModelConfig, kept: str, compute: Compute, page_size: int | None
) -> ModelFns:
    cached = cache_dtype(kept, compute.dtype)
    return transformer_fns(
        config, MAX_LEN, page_size, cache_dtype=cached, compute=compute
    )


def run(fns: ModelFns, params: Any, rows: int) -> Found:
    """Every row has the same tokens."""
    total = PROMPT + ANSWER
    tokens = np.random.default_rng(0).integers(0, fns.vocab_size, total, np.int32)
    per_row = -(-MAX_LEN // fns.page_size)
    pages = np.arange(rows * per_row, dtype=np.int32).reshape(rows, per_row)
    extend: Any = jax.jit(fns.extend, donate_argnums=1)
    cache: Any = fns.init_cache(rows * per_row)

    def prefill(cache: Any, at: int, row: int) -> tuple[Any, Any, float]:
        batch = batch_of(tokens[at : at + PROMPT], at, pages[row : row + 1], PROMPT)
        return timed(extend, params, cache, batch)

    def decode(cache: Any, at: int) -> tuple[Any, Any, float]:
        batch = batch_of(tokens[at : at + 1], at, pages, 1)
        in_place = batch._replace(page_table=None) if per_row == 1 else batch
        return timed(extend, params, cache, in_place)

    prefills, decoded, decodes = [], [], []
    for which in range(rows):
        _, cache, seconds = prefill(cache, 0, which)
        prefills.append(seconds)
        at_once, cache, _ = prefill(cache, PROMPT, which)
    for at in range(PROMPT, total):
        logits, cache, seconds = decode(cache, at)
        decoded.append(logits[0, 0])
        decodes.append(seconds)
    medians = statistics.median(decodes), statistics.median(prefills)
    return Found(at_once[0], np.stack(decoded), *medians)


def batch_of(
    tokens: np.ndarray[Any, Any], start: int, pages: np.ndarray[Any, Any], width: int
) -> TokenBatch:
    """The same tokens for every row, with logits of the first."""
    rows, reads = len(pages), min(width, ANSWER)
    arrays: dict[str, Any] = dict(
        tokens=np.tile(np.resize(tokens, width), (rows, 1)),
        start=np.full(rows, start, np.int32),
        length=np.full(rows, len(tokens), np.int32),
        page_table=pages,
        logits_at=np.tile(np.arange(reads, dtype=np.int32), (rows, 1)),
    )
    return TokenBatch(**arrays)


def timed(
    extend: Any, params: Any, cache: Any, batch: TokenBatch
) -> tuple[Any, Any, float]:
    began = time.perf_counter()
    logits, cache = jax.block_until_ready(extend(params, cache, batch))
    return np.asarray(logits), cache, time.perf_counter() - began


def row(
    kept: str, page_size: int | None, found: Found, expected: Found
) -> tuple[str, ...]:
    scale = expected.by_prefill.std()
    errors = (
        np.abs(ours - expected.by_prefill).max() / scale
        for ours in (found.by_prefill, found.by_decode)
    )
    same = "bitwise" if np.array_equal(found.by_prefill, found.by_decode) else "no"
    seconds = (found.decode_seconds, found.prefill_seconds)
    return (
        kept,
        "whole rows" if page_size is None else str(page_size),
        *(f"{error:.1e}" for error in errors),
        same,
        *(f"{1000 * each:.2f}" for each in seconds),
    )


if __name__ == "__main__":
    main()
