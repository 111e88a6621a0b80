"""The queue in front of the engine: what happens between two decode steps, in what order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic

from neuron_server.backend import Backend
from neuron_server.engine.engine import Engine, Joiner, Outcome
from neuron_server.engine.schedule import Occupancy, Policy, admit, is_patient, may_prefill
from neuron_server.engine.slot import Key
from neuron_server.engine.stopwatch import Concat
from neuron_server.errors import ValidationError
from neuron_server.grammar import Constraint
from neuron_server.request import GenerationRequest
from neuron_server.session import Pass
from neuron_server.submission import check


class Batcher(Generic[Key]):
    """A first-in-first-out queue, an engine, and the policy between them. Synchronous, for one thread.

    ``approximate_top_p`` as in ``device_sampling``.
    """

    def __init__(
        self,
        backend: Backend,
        policy: Policy,
        *,
        clock: Callable[[], float] = time.perf_counter,
        on_pass: Callable[[Pass], None] = lambda _: None,
        approximate_top_p: bool = False,
    ) -> None:
        self._approximate_top_p = approximate_top_p
        self._engine: Engine[Key] = Engine(backend, clock=clock, on_pass=on_pass)
        self._policy = policy
        self._clock = clock
        self._queue: dict[Key, Joiner[Key]] = {}

    @property
    def free_slots(self) -> int:
        """Slots without a request."""
        return self._engine.free_slots

    @property
    def queued(self) -> int:
        """Requests without a slot."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self._queue and not self._engine.running

    def submit(
        self,
        key: Key,
        request: GenerationRequest,
        submitted_at: float | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """Queue a request under a key that is neither queued nor running.

        ``submitted_at`` on the batcher's clock, now if not given. ``constraint`` as in ``Joiner``. Raises a
        ``ValidationError`` that says why, if the request can never run.
        """
        check(request, self._engine.info, approximate_top_p=self._approximate_top_p)
        if request.grammar is not None and constraint is None:
            raise ValidationError("grammar is not supported")  # never ignored
        since = self._clock() if submitted_at is None else submitted_at
        self._queue[key] = Joiner(key, request, since, constraint)

    def cancel(self, key: Key) -> None:
        """Forget a request: its slot is free at once, and it never prefills if it only waited."""
        if self._queue.pop(key, None) is None:
            self._engine.release(key)

    def turn(self) -> Iterator[Outcome[Key]]:
        """One group of prefills, then one decode step, handing out what each made as soon as it is made.

        ``submit`` and ``cancel`` may be called while the iterator is suspended and take effect at once.
        """
        occupancy = self._occupancy()
        joining, concat = self._admitted(occupancy), self._concat(occupancy)
        if joining and self._engine.info.prefill_mode == "rebuild":
            yield self._place(joining, concat)
        elif joining:
            while joining and self._queue and may_prefill(self._policy, self._engine.stalled_s):
                joining -= 1
                yield self._place(1, concat)
                concat = ""
        if self._engine.running:
            yield self._engine.step()

    def _occupancy(self) -> Occupancy:
        engine = self._engine
        return Occupancy(engine.running, engine.free_slots, len(self._queue), engine.steps_since_join)

    def _concat(self, occupancy: Occupancy) -> Concat:
        """What a group that joins now is counted under; one that finds nothing running joins nothing."""
        if not occupancy.running:
            return ""
        return "backpressure" if is_patient(self._policy, occupancy) else "wait_exceeded"

    def _admitted(self, occupancy: Occupancy) -> int:
        engine = self._engine
        waiting = islice(self._queue.values(), engine.free_slots)
        lengths = [len(joiner.request.input_ids) for joiner in waiting]
        return admit(self._policy, engine.info.prefill_mode, lengths, occupancy)

    def _place(self, count: int, concat: Concat) -> Outcome[Key]:
        keys = list(islice(self._queue, count))
        return self._engine.place([self._queue.pop(key) for key in keys], concat)
