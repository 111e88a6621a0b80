"""Everything a plan says, once: the text and the JSON are two views of it."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.planner.candidates import Candidate, Question
from launcher.planner.instance_plan import InstancePlan
from launcher.planner.recipe import Recipe, recipe


@dataclass(frozen=True, slots=True)
class Report:
    """The plans of all instances asked for."""

    question: Question
    dtype: str
    plans: tuple[InstancePlan, ...]
    assumptions: tuple[str, ...]

    @property
    def rule(self) -> str | None:
        """The rule of the exit status: ``None`` when something fits."""
        return None if any(plan.fits for plan in self.plans) else "memory"

    @property
    def smallest(self) -> str | None:
        """The smallest instance on which something fits."""
        able = [plan.instance for plan in self.plans if plan.fits]
        return min(able, key=lambda i: (i.cores, i.host_bytes)).name if able else None

    def recipe(self, candidate: Candidate) -> Recipe:
        """The command lines of ``candidate``."""
        return recipe(candidate, self.question, self.dtype)
