"""Model directories for the planner's tests, made from hand-written configurations of public shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launcher.planner.command import make_report
from launcher.planner.dimensions import ConfigNumbers, Dimensions, read_dimensions
from launcher.planner.instance_plan import InstancePlan
from launcher.planner.question import Settings
from launcher.planner.report import Report
from neuron_server.models import read_model

CONFIGS = Path(__file__).parent / "configs"
LLAMA_8B, LLAMA_70B, GPT2, QWEN_7B = "llama-3.1-8b", "llama-3.1-70b", "gpt2", "qwen2.5-7b"


def config(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def directory(root: Path, name: str, *without: str, **changes: Any) -> Path:
    """A directory that holds only a ``config.json``: that of ``name`` with these keys changed or gone."""
    values = {key: value for key, value in {**config(name), **changes}.items() if key not in without}
    path = root / name
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(values))
    return path


def dimensions(path: Path) -> tuple[ConfigNumbers, Dimensions]:
    numbers = ConfigNumbers.load(path)
    return numbers, read_dimensions(numbers, read_model(path))


def report(root: Path, name: str, settings: Settings | None = None, **changes: Any) -> Report:
    return make_report(settings or Settings(), str(directory(root, name, **changes)))


def plan_for(report: Report, instance: str) -> InstancePlan:
    return next(plan for plan in report.plans if plan.instance.name == instance)


def chosen(report: Report, instance: str) -> tuple[int, int, int, int] | None:
    """(tensor parallel, replicas, slots, length) of the choice for ``instance``."""
    choice = plan_for(report, instance).choice
    if choice is None:
        return None
    return choice.tensor_parallel, choice.replicas, choice.shape.batch_size, choice.shape.max_length
