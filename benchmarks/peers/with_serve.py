"""`transformers serve` on a processor; the arguments are those of `transformers`.

Continuous batching as version 4.57 ships it

- takes the size of its cache from a GPU's memory, and ends with an error where there is
  none; here it is told the machine's own;
- gives whoever reads an answer those of others too, to be put back, and ends a stream
  as soon as its last token is made, be it read or not, so that of four answers at once
  none is whole; here each is kept until it is read;
- looks for requests without a pause where there are none, which takes a core from
  whoever is measured meanwhile; here it looks every millisecond.
"""

import collections
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers.commands.transformers_cli import main
from transformers.generation.continuous_batching import (
    ContinuousBatchingManager,
    cache,
    continuous_api,
)

IDLE_SECONDS = 0.001
unread: dict[str, collections.deque[Any]] = collections.defaultdict(collections.deque)
prepare = continuous_api.ContinuousBatchProcessor.prepare_next_batch


def memory() -> tuple[Any, int, int, int]:
    """The device, its bytes in all, and those reserved and allocated."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.device("cpu"), total, 0, 0


def results(manager: Any, request_id: str) -> Iterator[Any]:
    """Those of one request; the server's only event loop reads them all."""
    while manager.is_running():
        if unread[request_id]:
            yield unread[request_id].popleft()
        elif result := manager.get_result(timeout=0.1):
            unread[result.request_id].append(result)


def prepare_or_pause(processor: Any) -> bool:
    is_prepared: bool = prepare(processor)
    if not is_prepared:
        time.sleep(IDLE_SECONDS)
    return is_prepared


cache.get_device_and_memory_breakdown = memory
ContinuousBatchingManager.request_id_iter = results
continuous_api.ContinuousBatchProcessor.prepare_next_batch = prepare_or_pause
main()
