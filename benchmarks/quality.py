"""Measures what int8 costs in quality, beside float32 and beside llama.cpp.

The text is Python's own documentation topics, cut into windows. Each is run without
what came before it, and the tokens of its second half count.
"""

import argparse
import dataclasses
import json
import pydoc_data.topics
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # This folder would be first on the path, and `http.py` the library's own `http`.
    sys.path[0] = str(Path(__file__).parents[1])

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import llama_perplexity
from benchmarks.foretold import Foretold, HostArray, Quality, joined, quality, since
from benchmarks.starting import fetch
from jaxserver import wiring
from jaxserver.ports.config import DEFAULT_MODEL, ServerConfig
from jaxserver.ports.model import TokenBatch
from jaxserver.ports.tokenizer import Tokenizer

CHUNK = 128
LLAMA = "llama.cpp"
HEAD = ("", "perplexity", "more than float32", "the same best token")


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    text = "\n".join(pydoc_data.topics.topics.values())
    found = {
        "float32": ours(args, "none", text),
        "int8": ours(args, "int8", text),
    }
    theirs = llamas(args, text)
    if theirs is not None:
        found[LLAMA] = theirs
    results = {name: quality(each, found["float32"]) for name, each in found.items()}
    print(table(results))
    print(f"{results['int8'].tokens} tokens count.")
    if theirs is not None:
        beside = quality(found["int8"], theirs)
        results["int8 beside llama.cpp"] = beside
        print(f"int8 to llama.cpp: {more(beside)} of perplexity.")
    if args.json is not None:
        runs = {name: dataclasses.asdict(result) for name, result in results.items()}
        args.json.write_text(json.dumps({"model": args.model, "runs": runs}))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", default=DEFAULT_MODEL)
    add("--tokens", type=int, default=8192, help="run, in whole windows")
    add("--kernels", default="xla", help="of int8: xla or native")
    add("--window", type=int, default=1024, help="tokens that are run together")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args(arguments)


def table(results: Mapping[str, Quality]) -> str:
    """In Markdown, with standard errors."""
    rows = [HEAD, ("---",) + ("--:",) * (len(HEAD) - 1)]
    rows += [row(name, result) for name, result in results.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def row(name: str, result: Quality) -> tuple[str, ...]:
    same = f"{result.agreement:.2%} ± {result.agreement_error:.2%}"
    return (name, f"{result.perplexity:.4f}", more(result), same)


def more(result: Quality) -> str:
    return f"{result.more:+.3%} ± {result.more_error:.3%}"


def llamas(args: argparse.Namespace, text: str) -> Foretold | None:
    """llama.cpp's, of the same file and tokens; None where it is not there."""
    program = shutil.which(llama_perplexity.PROGRAM)
    if program is None:
        print(f"{LLAMA} is missing: no {llama_perplexity.PROGRAM} on the path")
        return None
    model = Path(fetch(args.model))
    if model.suffix != ".gguf":
        print(f"{LLAMA} is missing: {model} is no GGUF file")
        return None
    count = args.tokens // args.window
    return llama_perplexity.foretell(program, model, text, args.window, count)


def ours(args: argparse.Namespace, quantize: str, text: str) -> Foretold:
    """Runs windows of the text through a model in chunks."""
    config = ServerConfig(
        model=args.model,
        dtype="fp32",
        quantize=quantize,
        kernels=args.kernels if quantize == "int8" else "xla",
        max_length=-(-args.window // CHUNK) * CHUNK,
        mesh_axes_shape=(1, 1, 1),
    )
    loaded = wiring.load_model(config, lambda *_: None)
    extend = jax.jit(loaded.fns.extend, donate_argnums=1)

    def one(window: HostArray) -> Foretold:
        cache: Any = loaded.fns.init_cache(1)
        pieces = []
        for at in range(0, len(window), CHUNK):
            logits, cache = extend(loaded.params, cache, batch_of(window, at))
            pieces.append(foretold(logits[0], window[at + 1 : at + 1 + CHUNK]))
        return since(joined(pieces), len(window) // 2)

    return joined([one(window) for window in windows(loaded.tokenizer, text, args)])


def windows(tokenizer: Tokenizer, text: str, args: argparse.Namespace) -> HostArray:
    """The text's first tokens; a model's beginning is the first of each window."""
    count = args.tokens // args.window
    tokens = np.array(tokenizer.encode(text)[: count * args.window], np.int32)
    if count == 0 or len(tokens) < count * args.window:
        raise SystemExit(f"no {args.tokens} tokens in windows of {args.window}")
    tokens = tokens.reshape(count, args.window)
    for beginning in tokenizer.encode("")[:1]:
        tokens[:, 0] = beginning
    return tokens


def foretold(logits: jax.Array, ahead: HostArray) -> Foretold:
    """Of the tokens that come after, as far as there are any."""
    rows = jax.nn.log_softmax(logits)[: len(ahead)]
    lowest = rows.max(axis=-1) - llama_perplexity.DEPTH
    given = jnp.maximum(rows[jnp.arange(len(ahead)), ahead], lowest)
    return Foretold(ahead, np.asarray(given), np.asarray(jnp.argmax(rows, axis=-1)))


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
