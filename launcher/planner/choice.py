"""Which of the configurations that an instance could run is recommended, and why."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.device.instances import Instance
from launcher.planner.anchors import serving_near
from launcher.planner.candidates import Candidate, Verdict
from launcher.planner.planned import PlannedModel
from launcher.planner.prediction import ACCURACY, Prediction

#: Without a figure to go by: as many slots as the published servers have, fewer where each join rebuilds all.
_UNPREDICTED_SLOTS = {True: 32, False: 16}


def choose(
    candidates: Sequence[Candidate], instance: Instance, model: PlannedModel
) -> tuple[Candidate | None, str]:
    """Throughput first, among what fits (else what is tight); and the reason in words.

    Of what is tight, that which is so by host memory alone goes first; else what is least full on the device.
    Differences below the accuracy of the prediction decide nothing: among those, a predicted figure goes
    before an extrapolated one, then more cores per replica (a shorter time to first token), then fewer slots.
    """
    alone = "the only configuration that was asked for" if len(candidates) == 1 else ""
    for able in (
        [c for c in candidates if c.verdict is Verdict.FITS],
        [c for c in candidates if c.verdict is Verdict.TIGHT and c.memory.comfortable],
    ):
        if able:
            best, because = _by_prediction(able) or _as_published(able, instance, model) or _modest(able)
            return best, alone or because
    full = [c for c in candidates if c.verdict is Verdict.TIGHT]
    if not full:
        return None, ""
    return min(full, key=lambda c: c.memory.share), alone or "everything is tight; this is the least full"


def _by_prediction(able: Sequence[Candidate]) -> tuple[Candidate, str] | None:
    rates = {id(c): c.tokens_per_s for c in able}
    best = max((rate for rate in rates.values() if rate is not None), default=None)
    if best is None:
        return None
    close = [c for c in able if (rates[id(c)] or 0.0) >= (1 - ACCURACY) * best]

    def order(c: Candidate) -> tuple[bool, int, int]:
        predicted = isinstance(c.prediction, Prediction) and c.prediction.label == "predicted"
        return not predicted, -c.tensor_parallel, c.shape.batch_size

    because = (
        f"within {ACCURACY:.0%}, the accuracy of the prediction, of the highest throughput; there: measured "
        "sizes first, then more cores per replica, then fewer slots"
    )
    return min(close, key=order), because


def _as_published(
    able: Sequence[Candidate], instance: Instance, model: PlannedModel
) -> tuple[Candidate, str] | None:
    for figure in serving_near(model.parameters, instance.name):
        for c in able:
            if c.mode.inserts and (c.tensor_parallel, c.replicas, c.shape.batch_size) == (
                figure.tensor_parallel,
                figure.replicas,
                figure.slots,
            ):
                return (
                    c,
                    f"not predicted; the configuration published for {figure.model}, of nearly this size",
                )
    return None


def _modest(able: Sequence[Candidate]) -> tuple[Candidate, str]:
    def order(c: Candidate) -> tuple[int, int]:
        wanted = _UNPREDICTED_SLOTS[c.mode.inserts]
        slots = c.shape.batch_size
        return c.tensor_parallel, -slots if slots <= wanted else slots

    because = (
        "not predicted; the fewest cores per replica that do, so nothing is spent on exchange between them"
    )
    return min(able, key=order), because
