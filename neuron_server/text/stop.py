"""Stop strings, found wherever they complete, across token borders."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Watches a growing text for stop strings.

    The string that *completes* first wins, so the answer does not depend on where token borders fall. The
    match is part of the text, so nothing ever has to be held back from a stream. (TGI only sees a stop that
    ends exactly at a token border; this finds the others too.)
    """

    __slots__ = ("_overlap", "_stops", "_tail")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._overlap = max((len(stop) for stop in self._stops), default=1) - 1
        self._tail = ""

    def feed(self, text: str) -> int | None:
        """Append ``text``; returns how many of its characters to keep when a stop completes in it.

        ``None`` means: no stop so far, keep all and go on. An empty stop string ends with the first token,
        as on TGI.
        """
        if not self._stops:
            return None
        seen = self._tail + text
        before = len(self._tail)
        ends = [at + len(stop) for stop in self._stops if stop and (at := seen.find(stop)) >= 0]
        if ends:
            return max(min(ends) - before, 0)
        if "" in self._stops:
            return len(text)
        self._tail = seen[-self._overlap :] if self._overlap > 0 else ""
        return None
