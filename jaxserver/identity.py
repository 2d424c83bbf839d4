"""Says exactly which model is served, how it is run, and by what."""

import hashlib
import importlib.metadata
import json
import platform
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import jax

from jaxserver.ports.config import ServerConfig
from jaxserver.ports.receipt import CONFIG_KEYS, Digests, Identity

LIBRARIES = ("jaxserver", "jax", "jaxlib")
PROCESSORS = Path("/proc/cpuinfo")
Made = TypeVar("Made")


def in_background(make: Callable[[], Made]) -> Future[Made]:
    """What another thread makes meanwhile; the program's end does not wait for it."""
    made: Future[Made] = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as error:  # whoever wants it hears of it
            made.set_exception(error)

    threading.Thread(target=run, name="jaxserver-meanwhile", daemon=True).start()
    return made


def identity_of(
    name: str,
    config: ServerConfig,
    digests: Digests,
    own_prompts: Sequence[str],
    kernels: str = "",
) -> Identity:
    """All that answers depend on besides their requests.

    Args:
        name: What the model is called.
        config: With the backend that runs it and the sizes that it came to.
        digests: Of what the model is made of.
        own_prompts: What the user writes prompts with in the template's place.
        kernels: Name of the library of our own kernels, if they are used.
    """
    template = digests.template
    if own_prompts:
        whole = json.dumps([template, *own_prompts])
        template = hashlib.sha256(whole.encode()).hexdigest()
    libraries = (*LIBRARIES, *(["transformers"] if config.backend == "flax" else []))
    return Identity(
        model=name,
        weights=digests.weights,
        settings=digests.settings,
        tokenizer=digests.tokenizer,
        template=template,
        config={key: getattr(config, key) for key in CONFIG_KEYS},
        versions={
            **{library: importlib.metadata.version(library) for library in libraries},
            "python": platform.python_version(),
            "device": _device(),
            **({"kernels": kernels} if kernels else {}),
        },
    )


def _device() -> str:
    """The kind of device; of a CPU its model as well, on which its bits depend."""
    kind = jax.devices()[0].device_kind
    return f"{kind} {_processor()}" if kind == "cpu" else kind


def _processor() -> str:
    """The processor's own name where the system tells it, else its family."""
    lines = PROCESSORS.read_text().splitlines() if PROCESSORS.exists() else []
    named = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    return next(named, platform.machine()).strip()
