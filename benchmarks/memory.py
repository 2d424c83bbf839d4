"""Measures the memory of loading a model and answering once, against what was planned.

Without a model it writes one of 1.1 billion random parameters.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    # This folder would be first on the path, and `http.py` the library's own `http`.
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.random_model import write_random_model

SETTINGS: Mapping[str, Any] = {
    "dtype": "bf16",
    "quantize": "none",
    "slots": 1,
    "max_length": 512,
}
PROMPT = "Once upon a time"
NEW_TOKENS = 16
MOST = 1.3
"""Of what is planned, in use at most."""
MIB = 2**20


class Used(NamedTuple):
    """Bytes in use by the process: before it loads, and at most."""

    before: int
    peak: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder, file or name; else a random one")
    model = parser.parse_args().model
    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            write_random_model(Path(folder))
        planned = plan(model or folder)
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            used = pool.submit(load_and_answer, model or folder).result()
    print(f"Planned {planned / MIB:,.0f} MiB.")
    print(f"In use before loading {used.before / MIB:,.0f} MiB,", end=" ")
    print(f"at most {used.peak / MIB:,.0f} MiB.")
    share = (used.peak - used.before) / planned
    print(f"The most less before is {share:.3f} of it.")
    if share > MOST:
        raise SystemExit(f"expected at most {MOST}")


def plan(model: str) -> int:
    """The bytes that `jaxserver plan` prints."""
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in SETTINGS.items()]
    command = [sys.executable, "-m", "jaxserver", "plan", "--json", f"--model={model}"]
    done = subprocess.run([*command, *flags], stdout=subprocess.PIPE, check=True)
    return int(json.loads(done.stdout)["bytes_per_device"])


def load_and_answer(model: str) -> Used:
    """Runs in a process of its own, with JAX up before it is looked at."""
    import jax  # noqa: PLC0415  # not in the process that measures

    from jaxserver import JAXServer  # noqa: PLC0415

    jax.block_until_ready(jax.numpy.zeros(1))
    before = resident_bytes("VmRSS")
    server = JAXServer.load(model, SETTINGS)
    answers = list(server.process(PROMPT, max_new_tokens=NEW_TOKENS, ignore_eos=True))
    if answers[-1][1] != NEW_TOKENS:
        raise SystemExit(f"{answers[-1][1]} tokens were answered, not {NEW_TOKENS}")
    server.end()
    return Used(before, resident_bytes("VmHWM"))


def resident_bytes(name: str) -> int:
    """A line of what Linux tells of this process: `VmRSS` now, `VmHWM` at most."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise SystemExit(f"this system does not tell {name}")
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
