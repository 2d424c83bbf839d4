"""Measures what int8 costs in quality: perplexity, and how often the best token stays.

Both are of the first tokens of Python's own documentation topics, and against the same
model in float32.
"""

import argparse
import dataclasses
import json
import pydoc_data.topics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # This folder would be first on the path, and `http.py` the library's own `http`.
    sys.path[0] = str(Path(__file__).parents[1])

import jax
import jax.numpy as jnp
import numpy as np

from jaxserver import wiring
from jaxserver.ports.config import DEFAULT_MODEL, ServerConfig
from jaxserver.ports.model import TokenBatch

CHUNK = 128
HostArray = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How well a text is foretold.

    Attributes:
        agreement: The share of tokens after which the likeliest next one is the one of
            float32.
    """

    quantize: str
    tokens: int
    perplexity: float
    agreement: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", default=DEFAULT_MODEL)
    add("--tokens", type=int, default=1024)
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args(arguments)
    results = measure(args.model, args.tokens)
    for result in results:
        print(
            f"{result.quantize}: perplexity {result.perplexity:.3f}, "
            f"the same best token {result.agreement:.1%}"
        )
    more = results[1].perplexity / results[0].perplexity - 1
    print(f"int8 has {more:+.2%} of perplexity, over {results[0].tokens} tokens.")
    if args.json is not None:
        runs = [dataclasses.asdict(result) for result in results]
        args.json.write_text(json.dumps({"model": args.model, "runs": runs}))


def measure(model: str, num_tokens: int) -> list[Quality]:
    """Float32 first, then int8."""
    expected = logprobs(model, "none", num_tokens)
    return [
        quality("none", expected, expected),
        quality("int8", logprobs(model, "int8", num_tokens), expected),
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class Foretold:
    """Of each token but the first: its log-probability, and the likeliest there."""

    logprobs: HostArray
    best: HostArray


def quality(quantize: str, found: Foretold, expected: Foretold) -> Quality:
    return Quality(
        quantize=quantize,
        tokens=len(found.best) + 1,
        perplexity=float(np.exp(-found.logprobs.mean(dtype=np.float64))),
        agreement=float((found.best == expected.best).mean()),
    )


def logprobs(model: str, quantize: str, num_tokens: int) -> Foretold:
    """Runs the text through a model in chunks."""
    config = ServerConfig(
        model=model,
        dtype="fp32",
        quantize=quantize,
        max_length=-(-num_tokens // CHUNK) * CHUNK,
        mesh_axes_shape=(1, 1, 1),
    )
    loaded = wiring.load_model(config, lambda *_: None)
    text = "\n".join(pydoc_data.topics.topics.values())
    tokens = np.array(loaded.tokenizer.encode(text)[:num_tokens], np.int32)
    if len(tokens) < num_tokens:
        raise SystemExit(f"the topics have {len(tokens)} tokens, not {num_tokens}")
    extend = jax.jit(loaded.fns.extend, donate_argnums=1)
    cache: Any = loaded.fns.init_cache(1)
    read, best = [], []
    for at in range(0, num_tokens, CHUNK):
        logits, cache = extend(loaded.params, cache, batch_of(tokens, at))
        ahead = tokens[at + 1 : at + 1 + CHUNK]
        rows = jax.nn.log_softmax(logits[0])[: len(ahead)]
        read.append(np.asarray(rows[jnp.arange(len(ahead)), ahead]))
        best.append(np.asarray(jnp.argmax(rows, axis=-1)))
    return Foretold(np.concatenate(read), np.concatenate(best))


def batch_of(tokens: HostArray, at: int) -> TokenBatch:
    """One chunk, with the logits of all its tokens."""
    piece = tokens[at : at + CHUNK]
    arrays: dict[str, Any] = dict(
        tokens=np.pad(piece, (0, CHUNK - len(piece)))[None],
        start=np.array([at], np.int32),
        length=np.array([len(piece)], np.int32),
        page_table=None,
        logits_at=np.arange(CHUNK, dtype=np.int32)[None],
    )
    return TokenBatch(**arrays)


if __name__ == "__main__":
    main()
