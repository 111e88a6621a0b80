"""Who joins the batch between two decode steps: pure policy, first in first out, never reordered.

The four parameters keep the meaning they have in TGI's router as far as a static batch allows:

- At most one group of prefills between two decodes, as in TGI.
- ``waiting_served_ratio`` (W): while requests run, a group starts only when the queue holds
  floor(running x W) requests. TGI also puts an accepted group back when it turns out smaller than that. Not
  here: slots that are free cost the same as occupied ones, so the number wanted is never more than the free
  slots could take.
- ``max_waiting_tokens`` (T): no such minimum once this many steps have passed since the last join. As in TGI
  the step about to run counts, so 0 and 1 both mean "never wait".
- ``max_batch_prefill_tokens`` (P): the group is cut where (n + 1) x longest prompt would exceed P, TGI's
  count for padded prompts. A head of the queue that is longer than P by itself (a resumed request) goes alone
  instead of blocking the queue for good. In *rebuild* mode the histories of running rows are prefilled again
  as well; they are not counted, or a full batch could never take anyone in.
- TGI's ``max_batch_total_tokens`` has no part: the reservation is B x T, always, and a free slot is T tokens.
- One-token prompts cost no prefill in *insert* mode (they join the next decode), so they neither wait for a
  minimum nor count towards P.

``max_prefill_stall_s`` is not TGI's. On a device every prefill costs the full prompt graph whatever its
length, so tokens do not bound the time for which running requests stand still; this does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuron_server.backend import PrefillMode


@dataclass(frozen=True, slots=True)
class Policy:
    """The parameters of admission; the defaults are the launcher's."""

    max_batch_prefill_tokens: int = 4096
    waiting_served_ratio: float = 0.3
    max_waiting_tokens: int = 20
    max_prefill_stall_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Batch and queue between two steps; ``steps_since_join`` counts decodes since the last join."""

    running: int
    free_slots: int
    queued: int
    steps_since_join: int


def admit(policy: Policy, mode: PrefillMode, prompt_lengths: Sequence[int], batch: Occupancy) -> int:
    """How many requests from the front of the queue join now.

    ``prompt_lengths`` in the queue's order; those beyond the free slots are not looked at and may be left
    out. At least 1 when nothing runs, the queue is not empty and a slot is free.
    """
    candidates = prompt_lengths[: batch.free_slots]
    free_riders = _leading_one_token_prompts(candidates) if mode == "insert" else 0
    minimum = 0
    if batch.running and is_patient(policy, batch):
        minimum = min(int(batch.running * policy.waiting_served_ratio), batch.free_slots)
    if batch.queued < minimum:
        return free_riders
    accepted = prefilled = longest = 0
    for length in candidates:
        if not (mode == "insert" and length == 1):
            longest = max(longest, length)
            if prefilled and (prefilled + 1) * longest > policy.max_batch_prefill_tokens:
                break
            prefilled += 1
        accepted += 1
    return accepted


def is_patient(policy: Policy, batch: Occupancy) -> bool:
    """Whether running requests may still make a short queue wait: the last join is not long ago."""
    return batch.steps_since_join + 1 < policy.max_waiting_tokens


def may_prefill(policy: Policy, stalled_s: float) -> bool:
    """Whether one more prefill may start before the next decode.

    ``stalled_s``: seconds that running requests have stood still in prefills since the last decode; 0 when
    nothing ran. The first prefill is thus always allowed and the queue cannot starve; the bound is overrun
    by at most one prefill. In *rebuild* mode a group is a single prefill, so the bound has nothing to cut.
    """
    return stalled_s == 0 or stalled_s < policy.max_prefill_stall_s


def _leading_one_token_prompts(lengths: Sequence[int]) -> int:
    return next((i for i, length in enumerate(lengths) if length != 1), len(lengths))
