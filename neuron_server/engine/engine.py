"""The synchronous owner of all slots. It knows no threads, text or wire; ids go in, events come out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic

import numpy as np
import numpy.typing as npt

from neuron_server.backend import Backend, BackendInfo, DecodeRow, Output, PrefillRow
from neuron_server.engine.choosing import Chosen, chooser
from neuron_server.engine.slot import Key, Slot
from neuron_server.engine.stopwatch import Concat, Stopwatch
from neuron_server.engine.warp import Choice
from neuron_server.errors import (
    BackendError,
    GenerationError,
    NeuronTgiError,
)
from neuron_server.event import TokenEvent
from neuron_server.grammar import Constraint
from neuron_server.request import GenerationRequest
from neuron_server.session import Pass


@dataclass(frozen=True, slots=True)
class Joiner(Generic[Key]):
    """A request that waits for a slot, since ``submitted_at`` on the engine's clock.

    ``constraint`` iff it has a grammar: compiled, and where ``input_ids`` end.
    """

    key: Key
    request: GenerationRequest
    submitted_at: float
    constraint: Constraint | None = None


@dataclass(slots=True)
class Outcome(Generic[Key]):
    """What one placement or one step made; a request in ``errors`` is over and holds nothing any more."""

    tokens: list[tuple[Key, TokenEvent]] = field(default_factory=list)
    errors: list[tuple[Key, NeuronTgiError]] = field(default_factory=list)


class Engine(Generic[Key]):
    """B slots on one backend.

    A request that fails, fails alone: its error stands in an ``Outcome`` and its slot is free again.
    ``DeviceFailedError``, and anything else that is not a ``BackendError``, is raised and leaves the engine
    dead. Every call of the backend is measured and handed to ``on_pass``, also the one that it dies in.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        clock: Callable[[], float] = time.perf_counter,
        on_pass: Callable[[Pass], None] = lambda _: None,
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._on_pass = on_pass
        self._concat: Concat = ""
        self._chooser = chooser(backend.info)
        self._slots: list[Slot[Key] | None] = [None] * backend.info.shape.batch_size
        self._places: dict[Key, int] = {}
        #: Seconds that running requests have stood still in prefills since the last decode; 0 when none run.
        self.stalled_s = 0.0
        #: Decode steps since the last request joined.
        self.steps_since_join = 0

    @property
    def info(self) -> BackendInfo:
        """What is constant about the backend."""
        return self._backend.info

    @property
    def running(self) -> int:
        """Occupied slots."""
        return len(self._places)

    @property
    def free_slots(self) -> int:
        """Slots that ``place`` could fill now."""
        return len(self._slots) - len(self._places)

    def place(self, joiners: Sequence[Joiner[Key]], concat: Concat = "") -> Outcome[Key]:
        """Give each joiner the lowest free slot and prefill it; first tokens come out at once.

        The joiners have passed ``submission.check``. *Insert*: one prefill per joiner; a one-token prompt
        takes its slot now and enters through the next decode; a resumed request longer than the prefill graph
        enters with as much as that takes and feeds the rest through decode steps. *Rebuild*: one prefill of
        all joiners and all running requests. ``concat`` is for the ``Pass`` through which they join. Raises
        ``ValueError`` for more joiners than free slots, or a key that is running.
        """
        if len(joiners) > self.free_slots or any(joiner.key in self._places for joiner in joiners):
            raise ValueError(f"{len(joiners)} joiners for {self.free_slots} free slots, or one runs already")
        outcome: Outcome[Key] = Outcome()
        self._concat = concat or self._concat
        if self.info.prefill_mode == "rebuild":
            self._rebuild(joiners, outcome)
        else:
            for joiner in joiners:
                self._insert(joiner, outcome)
        return outcome

    def step(self) -> Outcome[Key]:
        """Decode all occupied slots once and choose their next tokens; nothing happens when all are free."""
        outcome: Outcome[Key] = Outcome()
        decoded = self._decode(outcome)
        self.stalled_s = 0.0
        self.steps_since_join += 1
        if decoded is not None:
            rows, output, watch = decoded
            for _, slot in rows:
                slot.held += 1
            self._choose(rows, output, outcome)
            self._on_pass(watch.passed())
        self._concat = ""
        return outcome

    def release(self, key: Key) -> None:
        """Free what a request holds, without an event. Unknown keys are ignored."""
        if key in self._places:
            self._free([self._places[key]])

    # -- placement -------------------------------------------------------------------------------------------

    def _insert(self, joiner: Joiner[Key], outcome: Outcome[Key]) -> None:
        index, slot = self._slots.index(None), self._slot(joiner)
        first = slot.tokens[: self.info.max_prompt_tokens]
        if len(first) == 1:  # no prefill, which would corrupt the other slots: decode starts it
            if joiner.request.prompt_logprobs and self.info.can_score_prompt:
                slot.prompt_logprobs = (None,)
            self._occupy(index, slot)
            return
        try:
            output, watch = self._prefill([self._prefill_row(index, slot, first)], joined=1)
        except BackendError as error:
            outcome.errors.append((slot.key, error))
            return
        slot.held = len(first)
        self._occupy(index, slot)
        self._note_prompt_logprobs([(index, slot)], output.prompt_logprobs)
        self._choose([(index, slot)], output, outcome)
        self._on_pass(watch.passed())

    def _rebuild(self, joiners: Sequence[Joiner[Key]], outcome: Outcome[Key]) -> None:
        free = (index for index, slot in enumerate(self._slots) if slot is None)
        joined = [(next(free), self._slot(joiner)) for joiner in joiners]
        running = [PrefillRow(i, slot.tokens[: slot.held]) for i, slot in self._occupied()]
        rows = [self._prefill_row(i, slot, slot.tokens) for i, slot in joined]
        try:
            output, watch = self._prefill(running + rows, joined=len(rows))
        except BackendError as error:  # refused before device work: nothing has changed
            if len(joiners) == 1:
                outcome.errors.append((joiners[0].key, error))
                return
            for joiner in joiners:  # find out whose fault it is
                self._rebuild([joiner], outcome)
            return
        for index, slot in joined:
            slot.held = len(slot.tokens)
            self._occupy(index, slot)
        self._note_prompt_logprobs(joined, output.prompt_logprobs[len(running) :])
        self._choose(joined, output, outcome, before=len(running))
        self._on_pass(watch.passed())

    def _slot(self, joiner: Joiner[Key]) -> Slot[Key]:
        waited_s = max(0.0, self._clock() - joiner.submitted_at)
        sampling = self._chooser.row(joiner.request.sampling)
        return Slot(joiner.key, joiner.request, waited_s, constraint=joiner.constraint, sampling=sampling)

    def _prefill_row(self, index: int, slot: Slot[Key], tokens: Sequence[int]) -> PrefillRow:
        return PrefillRow(index, tokens, self._scored(slot), slot.sampling)

    def _occupy(self, index: int, slot: Slot[Key]) -> None:
        self._slots[index] = slot
        self._places[slot.key] = index
        self.steps_since_join = 0

    def _scored(self, slot: Slot[Key]) -> bool:
        return slot.request.prompt_logprobs and self.info.can_score_prompt

    def _prefill(self, rows: Sequence[PrefillRow], joined: int) -> tuple[Output, Stopwatch]:
        tokens, stalled = sum(len(row.tokens) for row in rows), self.running
        watch = Stopwatch(self._clock, "prefill", len(rows), joined, tokens, stalled, self._concat)
        output = self._measured(watch, partial(self._backend.prefill, rows))
        self._concat = ""
        if stalled:
            self.stalled_s += watch.forward_s
        return output, watch

    def _measured(self, watch: Stopwatch, call: Callable[[], Output]) -> Output:
        try:
            return watch.returned(call())
        except BaseException:
            self._on_pass(watch.failed())
            raise

    def _note_prompt_logprobs(
        self, joined: Sequence[tuple[int, Slot[Key]]], scores: Sequence[npt.NDArray[np.float32] | None]
    ) -> None:
        for (_, slot), row in zip(joined, scores, strict=False):  # a backend may score nothing at all
            if self._scored(slot) and row is not None:
                slot.prompt_logprobs = (None, *row.tolist())[: slot.request.prompt_length]

    # -- decode ----------------------------------------------------------------------------------------------

    def _occupied(self) -> list[tuple[int, Slot[Key]]]:
        return [(index, slot) for index, slot in enumerate(self._slots) if slot is not None]

    def _decode(self, outcome: Outcome[Key]) -> tuple[list[tuple[int, Slot[Key]]], Output, Stopwatch] | None:
        """All live slots and the newcomers at position 0, and their output; ``None`` when there are none."""
        newcomers = [index for index, slot in self._occupied() if not slot.live]
        while True:
            rows = [(i, slot) for i, slot in self._occupied() if slot.live or i in newcomers]
            if not rows:
                return None
            decode_rows = [DecodeRow(i, slot.tokens[slot.held], slot.held, slot.sampling) for i, slot in rows]
            count, concat = len(rows), self._concat if newcomers else ""
            watch = Stopwatch(self._clock, "decode", count, len(newcomers), count, concat=concat)
            try:
                return rows, self._measured(watch, partial(self._backend.decode, decode_rows)), watch
            except BackendError as error:  # refused before device work: nothing has changed
                if len(newcomers) > 1:
                    newcomers = newcomers[:1]  # the others take their turn in the next steps
                elif newcomers:
                    self._fail([self._slots[newcomers.pop()]], error, outcome)
                else:  # live rows cannot be left out, so none of them can go on
                    self._fail([slot for _, slot in rows], GenerationError(str(error)), outcome)

    def _choose(
        self,
        rows: Sequence[tuple[int, Slot[Key]]],
        output: Output,
        outcome: Outcome[Key],
        before: int = 0,
    ) -> None:
        """Give the rows that are due their tokens and free those that end; ``before``: rows of others."""
        due = [i for i, (_, slot) in enumerate(rows) if slot.due]
        if not due:
            return
        slots = [rows[i][1] for i in due]
        chosen = self._chooser.choose(output, [before + i for i in due], slots)
        ended: list[int] = []
        for slot, choice in zip(slots, chosen, strict=True):
            event = _accept(slot, choice, outcome)
            if event is None or event.finish is not None:
                ended.append(self._places[slot.key])
        self._free(ended)

    def _fail(self, slots: Sequence[Slot[Key] | None], error: NeuronTgiError, outcome: Outcome[Key]) -> None:
        keys = [slot.key for slot in slots if slot is not None]
        outcome.errors.extend((key, error) for key in keys)
        self._free([self._places[key] for key in keys])

    def _free(self, indices: Sequence[int]) -> None:
        live: list[int] = []
        for index in indices:
            slot = self._slots[index]
            if slot is not None:
                live += [index] if slot.live else []
                del self._places[slot.key]
                self._slots[index] = None
        if not self._places:
            self.stalled_s = 0.0
        if live:
            self._backend.release(live)


def _accept(slot: Slot[Key], choice: Chosen, outcome: Outcome[Key]) -> TokenEvent | None:
    """The event of a row's choice, or ``None`` and an error in ``outcome``."""
    error = choice if isinstance(choice, NeuronTgiError) else None
    if isinstance(choice, Choice):
        try:
            event = slot.accept(choice)
        except ValueError as problem:  # of its constraint alone
            error = GenerationError(str(problem))
        else:
            outcome.tokens.append((slot.key, event))
            return event
    outcome.errors.append((slot.key, error or GenerationError("the logits of this request are not finite")))
    return None
