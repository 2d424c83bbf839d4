"""The sizes that an engine has on a device where nobody chose them."""

import logging

import jax

from jaxserver.adapters.engine.processor import num_cores
from jaxserver.backends import Backend
from jaxserver.core.config import MIN_CALL_TOKENS, EngineConfig
from jaxserver.core.sharding import num_devices
from jaxserver.ports.config import ServerConfig

LOGGER = logging.getLogger("jaxserver")
DEFAULT_SLOTS = {"cpu": 8}
ACCELERATOR_SLOTS = 32
FREE_TOKENS = {"cpu": MIN_CALL_TOKENS}
ACCELERATOR_FREE_TOKENS = 32
"""So few that a step takes as long as its weights take to be read."""
CALL_TOKENS = {"cpu": 24}
LANES = 2
"""Of a processor: the short pieces of one step are too short to be shared by cores.

Two prefills at the same time take as long as 1.1 of them, and two decode steps as long
as one of as many rows, or less.
"""
SURE_MATCH = 3
"""Tokens that match before a guess is worth one token's products less than few tokens'.

What follows on three that stood there before is right more often than not.
"""


def engine_config(config: ServerConfig, backend: Backend) -> EngineConfig:
    """The sizes that follow from what was asked for and what the model allows.

    The number of slots that nobody chose is one that the mesh divides.
    """
    fns, mesh = backend.fns, backend.place.mesh
    is_fast = config.numerics == "fast"
    if fns.max_len < config.max_length:
        LOGGER.info("max_length is cut to the model's %d tokens", fns.max_len)
    platform, row_parts = jax.devices()[0].platform, num_devices("batch", mesh)
    usual = DEFAULT_SLOTS.get(platform, ACCELERATOR_SLOTS)
    slots = config.slots or -(-usual // row_parts) * row_parts
    lanes = _num_lanes(slots, platform, config, backend)
    return EngineConfig(
        slots=slots // lanes,
        lanes=lanes,
        prefill_rows=config.batch_size,
        max_len=fns.max_len,
        max_stream_tokens=config.max_stream_tokens,
        chunk=fns.chunk,
        is_fast=is_fast,
        encoder_lengths=fns.encoder_lengths,
        row_parts=row_parts,
        tokens_per_page=None if fns.page_size >= fns.max_len else fns.page_size,
        pages=config.num_pages,
        free_tokens=FREE_TOKENS.get(platform, ACCELERATOR_FREE_TOKENS),
        least_match=1 if _guesses_are_free(backend, platform) else SURE_MATCH,
        call_tokens=CALL_TOKENS.get(platform, fns.max_len),
        speculates=_speculates(config, platform),
        # Between processes the order of a sum goes by the size of what is summed up.
        prefix_cache=config.prefix_cache and (is_fast or jax.process_count() == 1),
    )


def _num_lanes(
    slots: int, platform: str, config: ServerConfig, backend: Backend
) -> int:
    """Two of the same size where one processor does all, if each has slots enough.

    A lane of fewer slots than a call has tokens would take as long as one of so many.
    Pages smaller than a row belong to all slots.
    """
    fns = backend.fns
    is_alone = platform == "cpu" and backend.place.mesh.size == 1
    has_cores = num_cores() >= LANES
    has_rows = fns.page_size >= fns.max_len and config.num_pages is None
    has_slots = slots % LANES == 0 and slots // LANES >= MIN_CALL_TOKENS
    # Where bits depend on the rows of a step, these must not depend on the cores.
    is_free = fns.chunk is None
    may = is_alone and has_cores and has_rows and has_slots and is_free
    return LANES if may else 1


def _guesses_are_free(backend: Backend, platform: str) -> bool:
    """Few tokens take as long as one, unless one has a way of its own to be multiplied.

    `int8_product` has one for a token alone.
    """
    is_int8 = backend.kind == "native" and backend.kept == "int8"
    return platform != "cpu" or not is_int8 or bool(backend.kernels)


def _speculates(config: ServerConfig, platform: str) -> bool:
    """Whether it is known that guesses change no bit, or nobody minds."""
    if config.speculate == "none" or platform == "cpu" or config.numerics == "fast":
        return config.speculate != "none"
    LOGGER.info("tokens are guessed on this device only with numerics = fast")
    return False
