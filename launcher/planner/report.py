"""Everything a plan says, once: the text and the JSON are two views of it."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.planner.candidates import Candidate, Question, Verdict
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
    def smallest(self) -> InstancePlan | None:
        """The smallest instance on which something fits; where nothing does, on which something is tight."""
        return self._smallest(Verdict.FITS) or self._smallest(Verdict.TIGHT)

    @property
    def smallest_tight(self) -> InstancePlan | None:
        """An instance smaller than that, on which something is tight."""
        tight = self._smallest(Verdict.TIGHT)
        return None if tight is self.smallest else tight

    def _smallest(self, verdict: Verdict) -> InstancePlan | None:
        able = [plan for plan in self.plans if plan.choice is not None and plan.choice.verdict is verdict]
        return min(able, key=lambda plan: (plan.instance.cores, plan.instance.host_bytes), default=None)

    def recipe(self, candidate: Candidate) -> Recipe:
        """The command lines of ``candidate``."""
        return recipe(candidate, self.question, self.dtype)
