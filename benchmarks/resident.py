"""What a ready server holds in memory: part by part, and beside llama.cpp's server.

Parts are what the process grows by while it is put together as `jaxserver serve` does,
one after the other, with compiled code in its cache already. Servers, whose caches are
empty at first, are looked at when they have answered a short request, and again when
every slot has been filled.
"""

import argparse
import concurrent.futures
import ctypes
import dataclasses
import gc
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    # This folder would be first on the path, and `http.py` the library's own `http`.
    sys.path[0] = str(Path(__file__).parents[1])

import psutil

from benchmarks.contestants import CONTESTANTS, Missing, Setting
from benchmarks.load import Workload
from benchmarks.memory import MIB, resident_bytes
from benchmarks.starting import fetch

CONTEXT = 2048
PROMPT_TOKENS, NEW_TOKENS = 1500, 400
"""An answer is so long that the last prompt is there before the first one ends."""
SERVERS = ("jaxserver", "jaxserver, native", "llama-server")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--slots", type=int, default=8)
    args = parser.parse_args()
    model = fetch(args.model)
    found = parts(model, args.slots)
    print("| part | MiB |\n|---|--:|")
    for part, size in found.items():
        print(f"| {part} | {size / MIB:.1f} |")
    print(f"| in all | {sum(found.values()) / MIB:.1f} |\n")
    print("| server | one short request, MiB | every slot full, MiB |\n|---|--:|--:|")
    for name in SERVERS:
        print(f"| {name} | {of_server(name, model, args.slots)} |", flush=True)


def parts(model: str, slots: int) -> dict[str, int]:
    """In a process of its own, after another that has filled the cache."""
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, JAXSERVER_CACHE=folder),
    ):
        for _ in range(2):
            with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
                found = pool.submit(put_together, model, slots).result()
    return found


def put_together(model: str, slots: int) -> dict[str, int]:
    """By how many bytes this process grows at each part."""
    before, found = 0, {}
    for part in building(model, slots):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        now = resident_bytes("VmRSS")
        found[part], before = now - before, now
    return found


def building(model: str, slots: int) -> Iterator[str]:
    """Says a part as soon as it is there."""
    import jax  # noqa: PLC0415  # not in the process that measures

    import jaxserver.serving  # noqa: PLC0415, F401  # what `serve` imports
    from jaxserver import wiring  # noqa: PLC0415
    from jaxserver.adapters.engine.dispatch import Device  # noqa: PLC0415
    from jaxserver.adapters.engine.orders import NoOrders  # noqa: PLC0415
    from jaxserver.ports.config import ServerConfig  # noqa: PLC0415

    jax.devices()
    yield "Python and libraries"
    config = ServerConfig(model=model, slots=slots, pre_compile=False)
    loaded = wiring.load_model(config, lambda *_: None)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
    yield f"weights ({weights / MIB:.1f}), tokenizer, templates"
    compiled = wiring.compile_model(loaded, config, lambda *_: None)
    steps = compiled.steps
    sizes: Mapping[str, Any] = {
        "prefill": steps.prefill,
        "decode": steps.decode,
    }
    for kind, each in sizes.items():
        for size in each:
            compiled.get(kind, size)
            yield f"executable: {kind} {size}"
    for kind in ("adopt", "begin", "init"):
        compiled.get(kind, 0)
    for kind, each in {"take": steps.take, "put": steps.put}.items():
        for size in each:
            compiled.get(kind, size)
    yield "executables: the others"
    engine = loaded.engine
    device, *_ = (
        Device(compiled, loaded.params, engine, NoOrders()) for _ in range(engine.lanes)
    )
    yield f"cache ({loaded.plan.cache_bytes_per_device / MIB:.1f}) and slots"
    device.warm_up()
    yield "what their first runs make"


def of_server(name: str, model: str, slots: int) -> str:
    """MiB of a server: after a first request, and with every slot full."""
    setting = Setting(
        file=Path(model),
        config={},
        slots=slots,
        threads=os.cpu_count() or 1,
        serve=(),
        pythons={},
        context=CONTEXT,
    )
    filling = Workload(
        clients=slots,
        requests=slots,
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=NEW_TOKENS,
    )
    first = dataclasses.replace(filling, clients=1, requests=1, prompt_tokens=8)
    others = set(children())
    sizes = []
    try:
        with CONTESTANTS[name](setting) as measure:
            for asked in (first, filling):
                measure(asked)
                held = [x.memory_info().rss for x in children() if x not in others]
                sizes.append(f"{sum(held) / MIB:.0f}")
    except Missing as error:
        return f"missing: {error} | "
    return " | ".join(sizes)


def children() -> list[psutil.Process]:
    """All processes that come of this one."""
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


if __name__ == "__main__":
    main()
