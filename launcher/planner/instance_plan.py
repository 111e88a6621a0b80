"""What one instance can do with a model: every configuration judged, one chosen, the rest explained."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.device.instances import TENSOR_PARALLEL_DEGREES, Instance
from launcher.planner.candidates import Candidate, Question, Verdict, judge
from launcher.planner.choice import choose


@dataclass(frozen=True, slots=True)
class Refused:
    """A tensor-parallel degree of which no configuration was tried, or none fits, and why."""

    tensor_parallel: int
    why: str


@dataclass(frozen=True, slots=True)
class InstancePlan:
    """What ``instance`` can do: its candidates, the one recommended (and why), and what is ruled out."""

    instance: Instance
    candidates: tuple[Candidate, ...]
    choice: Candidate | None
    chosen_because: str
    refused: tuple[Refused, ...]

    @property
    def fits(self) -> bool:
        """Whether anything can run here."""
        return self.choice is not None


def plan_instance(instance: Instance, question: Question) -> InstancePlan:
    """Judge every configuration of ``instance`` and choose one."""
    wanted = question.wish.tensor_parallel
    candidates: list[Candidate] = []
    refused: list[Refused] = []
    for degree in TENSOR_PARALLEL_DEGREES if wanted is None else (wanted,):
        if why := _impossible(instance, question, degree):
            refused.append(Refused(degree, why))
            continue
        found = list(judge(instance, question, degree))
        candidates += found
        if all(c.verdict is Verdict.NO for c in found):
            refused.append(Refused(degree, found[0].why))
    choice, because = choose(candidates, instance, question.model)
    return InstancePlan(instance, tuple(candidates), choice, because, tuple(refused))


def _impossible(instance: Instance, question: Question, degree: int) -> str | None:
    """Why no configuration of ``degree`` need be looked at."""
    heads, replicas = question.model.sizes.heads, question.wish.replicas
    if degree > instance.cores:
        return f"one replica would take {degree} cores, and {instance.name} has {instance.cores}"
    if degree not in TENSOR_PARALLEL_DEGREES:
        allowed = ", ".join(map(str, TENSOR_PARALLEL_DEGREES))
        return f"it was compiled for {degree} cores, and Inferentia2 connects {allowed}, no other number"
    if replicas is not None and replicas * degree > instance.cores:
        return (
            f"{replicas} replicas of {degree} cores take {replicas * degree}, and {instance.name} has "
            f"{instance.cores}"
        )
    if question.support.generation == "legacy" and heads % degree:
        return (
            f"{heads} attention heads cannot be split over {degree} cores; whether the legacy generation "
            "pads them for this model is not verified"
        )
    return None
