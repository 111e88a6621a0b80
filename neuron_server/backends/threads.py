"""How many threads a model's arithmetic is worth.

Every operator of a forward ends in a barrier between torch's threads. Where an operator takes microseconds
the barrier costs more than the second thread gives, and when another process has the second core, the wait is
a time slice of the scheduler: the demo model then made 15 tokens/s with two threads and 350 with one.
"""

from __future__ import annotations

import logging
import os

import torch

logger = logging.getLogger(__name__)

#: Models with fewer bytes of weights than this run on one thread, which leaves the other cores to the router.
SMALL_MODEL_BYTES = 64_000_000


def use_threads_for(weight_bytes: int, most: int | None = None) -> None:
    """Choose torch's threads for so many bytes; ``OMP_NUM_THREADS`` in the environment overrules it.

    ``most``: this process's share of the processor, where replicas share it. Each of them would take all
    cores, and every barrier would wait for a thread that the others' threads keep from running.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    if weight_bytes < SMALL_MODEL_BYTES:
        torch.set_num_threads(1)
        logger.info("a small model (%.0f MB): computing on one thread", weight_bytes / 1e6)
    elif most is not None and most < torch.get_num_threads():
        torch.set_num_threads(most)
        logger.info("one of several replicas: computing on %d thread(s)", most)
