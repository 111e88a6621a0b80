"""One large file from the hub: how far it is, said now and then, and going on where the connection broke.

The hub client keeps what has arrived in ``<blob>.incomplete`` and continues there, in the same process or in
the next one. Its own progress bars need a terminal; a log needs a line every few seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from requests.exceptions import RequestException

logger = logging.getLogger(__name__)

INTERVAL_S = 10.0
#: In a row without a single new byte; a connection that keeps breaking but brings some is kept.
ATTEMPTS = 5
RETRY_S = 2.0
_PASSING = frozenset({429, 500, 502, 503, 504})


def download_file(model_id: str, name: str, commit: str, repository: Path, size: int | None) -> Path:
    """Fetch one file into the cache; its path. ``repository`` is the model's directory in the cache.

    ``size`` in bytes is for the progress lines alone. Raises what the hub client raises, once
    trying again was no use.
    """
    failures, arrived = 0, 0
    with Progress(name, repository / "blobs", size) as progress:
        while True:
            try:
                return Path(hf_hub_download(model_id, name, revision=commit))
            except RequestException as error:
                now = progress.arrived_bytes()
                failures, arrived = (0 if now > arrived else failures) + 1, now
                if failures >= ATTEMPTS or not _may_pass(error):
                    raise
                logger.warning(
                    "%s was interrupted after %s (%s); going on from there",
                    name,
                    megabytes(now),
                    type(error).__name__,
                )
                time.sleep(RETRY_S)


def _may_pass(error: RequestException) -> bool:
    """Whether the next attempt can end otherwise."""
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in _PASSING
    return True


class Progress:
    """Says every ``interval_s`` how much of a file has arrived, in a thread of its own, while it is open."""

    def __init__(self, name: str, blobs: Path, size: int | None, *, interval_s: float | None = None) -> None:
        self._name = name
        self._blobs = blobs
        self._size = size
        self._interval_s = INTERVAL_S if interval_s is None else interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="download-progress", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def arrived_bytes(self) -> int:
        """Bytes of the file under way: the one in the cache that was written last."""
        sizes = []
        for path in self._blobs.glob("*.incomplete"):
            try:
                status = path.stat()
            except OSError:  # complete, and renamed, in between
                continue
            sizes.append((status.st_mtime_ns, status.st_size))
        return max(sizes, default=(0, 0))[1]

    def _run(self) -> None:
        before, before_s = self.arrived_bytes(), time.monotonic()
        while not self._done.wait(self._interval_s):
            now, now_s = self.arrived_bytes(), time.monotonic()
            if now > before:
                logger.info("%s", self._line(now, (now - before) / (now_s - before_s)))
            else:
                logger.info("Downloading %s: nothing arrived for %.0f s", self._name, self._interval_s)
            before, before_s = now, now_s

    def _line(self, arrived: int, bytes_per_s: float) -> str:
        speed = f"{megabytes(bytes_per_s)}/s"
        if not self._size or arrived > self._size:
            return f"Downloading {self._name}: {megabytes(arrived)}, {speed}"
        share = f"{megabytes(arrived)} of {megabytes(self._size)} ({100 * arrived // self._size} %)"
        left = timedelta(seconds=int((self._size - arrived) / bytes_per_s))
        return f"Downloading {self._name}: {share}, {speed}, {left} left"


def megabytes(count: float) -> str:
    """``1234.5 MB``"""
    return f"{count / 1e6:.1f} MB"
