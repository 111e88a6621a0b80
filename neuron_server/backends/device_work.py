"""The edge to a device: after its first failure there is no second call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from neuron_server.errors import DeviceFailedError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class DeviceWork:
    """Runs what touches the device. ``name`` is the backend's, for messages."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._dead: str | None = None

    def refuse_if_dead(self) -> None:
        """Raise ``DeviceFailedError`` after a failure or after ``close``."""
        if self._dead is not None:
            raise DeviceFailedError(self._dead)

    def run(self, work: Callable[[], Result]) -> Result:
        """``work()``; whatever it raises becomes a ``DeviceFailedError``, and every later call is refused."""
        try:
            return work()
        except Exception as error:
            # Whatever a forward raises: half a step may be in the cache, so nothing can go on from here.
            self._dead = f"{type(error).__name__} in the model's forward: {error}"
            logger.exception("the %s backend failed and is dead", self._name)
            raise DeviceFailedError(self._dead) from error

    def close(self) -> None:
        """Refuse all later calls. Idempotent."""
        self._dead = self._dead or "the backend is closed"
