"""A program may end without closing its engine."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
PROGRAM = """
import time
import jax
import jax.numpy as jnp
import numpy as np
from jaxserver.adapters.engine.dispatch import Device
from jaxserver.adapters.engine.loop import EngineLoop
from jaxserver.adapters.engine.orders import NoOrders
from jaxserver.adapters.engine.requests import Limits
from jaxserver.adapters.engine.text import Shell, TextEngine
from jaxserver.adapters.telemetry.listeners import Listeners
from jaxserver.core.config import EngineConfig
from jaxserver.core.steps import Outcome
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.types import GenerationRequest
from tests.fakes import ByteTokenizer, known

SIZES = EngineConfig(slots=4, max_len=4096)
MATRIX = jnp.ones((300, 300))
BUSY = jax.jit(lambda x: jax.lax.fori_loop(0, 50, lambda _, y: jnp.sin(y @ x), x))

class Endless(Device):
    def __init__(self):
        self.orders = NoOrders()

    def run(self, orders):
        BUSY(MATRIX).block_until_ready()
        ids, floats = np.full((4, 1), 97, np.int32), np.zeros((4, 1), np.float32)
        return Outcome(
            tokens=ids, counts=np.ones(4, np.int32), ends=np.zeros(4, np.int32),
            steps=np.int32(1), logprobs=floats, top_ids=ids, top_logprobs=floats,
            sound=np.ones(4, np.bool_), drafted=np.zeros(4, np.int32),
            accepted=np.zeros(4, np.int32),
        )

    def prefill_orders(self, plan, requests):
        return ()

    def decode_orders(self, plan):
        return ()

shell = Shell(Listeners(()), time.monotonic, lambda: 1, known())
engine = TextEngine(ByteTokenizer(), ServerConfig(), 4, Limits(4096), shell)
engine.start(lambda on: EngineLoop([Endless()], SIZES, on, time.monotonic, 300.0))
streams = [engine.generate(GenerationRequest(prompt="a")) for _ in range(6)]
print(next(streams[0]).text)
"""


def test_a_program_that_ends_in_the_middle_of_an_answer_ends_cleanly() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "a\n", "")
