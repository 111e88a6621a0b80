"""What signals ask of the launcher: the first to stop in order, the second to stop at once."""

from __future__ import annotations

import asyncio
import logging
import signal

log = logging.getLogger("text_generation_launcher")


class Stopping:
    """``requested``: drain and stop. ``hurried``: no more waiting."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.hurried = asyncio.Event()

    def listen(self) -> None:
        """Take over SIGINT, SIGTERM and SIGHUP (the last unless ``nohup`` had it ignored)."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self.ask, number.name)

    def ask(self, name: str) -> None:
        """One more request to stop."""
        if self.requested.is_set():
            log.warning("%s again: killing what still runs", name)
            self.hurried.set()
        else:
            log.info("%s received: stopping; once more to stop at once", name)
            self.requested.set()
