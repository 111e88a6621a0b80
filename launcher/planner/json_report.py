"""The plan as JSON. Keys are stable: ``schema`` counts up when one changes its meaning or goes."""

from __future__ import annotations

import json
from typing import Any

from launcher.device.instances import CORE_BYTES
from launcher.planner.anchors import serving_near
from launcher.planner.candidates import Candidate
from launcher.planner.instance_plan import InstancePlan
from launcher.planner.prediction import NotPredicted
from launcher.planner.report import Report

SCHEMA = 1

_Object = dict[str, Any]  # Any: JSON


def json_report(report: Report) -> str:
    """One object, indented; sizes in bytes, times in seconds, absent figures ``null``."""
    question = report.question
    whole: _Object = {
        "schema": SCHEMA,
        "fits": report.rule is None,
        "smallest_instance": None if report.smallest is None else report.smallest.instance.name,
        "model": _model(report),
        "workload": {
            "prompt_tokens": question.workload.prompt_tokens,
            "new_tokens": question.workload.new_tokens,
        },
        "assumptions": list(report.assumptions),
        "instances": [_instance(report, plan) for plan in report.plans],
    }
    return json.dumps(whole, indent=2)


def _model(report: Report) -> _Object:
    question = report.question
    model, support = question.model, question.support
    return {
        "id": model.name,
        "model_type": model.sizes.model_type,
        "parameters": model.parameters,
        "parameters_from": model.source,
        "layers": model.sizes.layers,
        "heads": model.sizes.heads,
        "kv_heads": model.sizes.kv_heads,
        "head_dim": model.sizes.head_dim,
        "max_positions": model.facts.max_positions,
        "compiled": model.facts.static is not None,
        "dtype": report.dtype,
        "generation": support.generation,
        "release": support.release,
        "image": support.image,
        "notes": [*support.notes, *model.notes],
    }


def _instance(report: Report, plan: InstancePlan) -> _Object:
    near = serving_near(report.question.model.parameters, plan.instance.name)
    return {
        "instance": plan.instance.name,
        "cores": plan.instance.cores,
        "core_bytes": CORE_BYTES,
        "host_bytes": plan.instance.host_bytes,
        "fits": plan.fits,
        "choice": None if plan.choice is None else _choice(report, plan, plan.choice),
        "candidates": [_candidate(candidate) for candidate in plan.candidates],
        "refused": [{"tensor_parallel": r.tensor_parallel, "why": r.why} for r in plan.refused],
        "published": [
            {
                "model": f.model,
                "server": f.server,
                "date": f.date,
                "tensor_parallel": f.tensor_parallel,
                "replicas": f.replicas,
                "batch_size": f.slots,
                "tokens_per_s": f.tokens_per_s,
                "source": f.source,
            }
            for f in near
        ],
    }


def _choice(report: Report, plan: InstancePlan, candidate: Candidate) -> _Object:
    recipe = report.recipe(candidate)
    commands = {
        "flags": recipe.flags,
        "export": recipe.export,
        "export_host_bytes": recipe.export_host_bytes,
        "serve": recipe.serve,
    }
    return {**_candidate(candidate), "because": plan.chosen_because, **commands}


def _candidate(candidate: Candidate) -> _Object:
    memory, host = candidate.memory, candidate.host
    return {
        "tensor_parallel": candidate.tensor_parallel,
        "replicas": candidate.replicas,
        "batch_size": candidate.shape.batch_size,
        "max_total_tokens": candidate.shape.max_length,
        "continuous_batching": candidate.mode.inserts,
        "on_device_sampling": candidate.mode.on_device_sampling,
        "heads_on_device": candidate.split.heads,
        "kv_heads_on_device": candidate.split.kv_heads,
        "notes": list(candidate.split.notes),
        "core": {
            "weights_bytes": memory.weights,
            "cache_bytes": memory.cache,
            "reserve_bytes": memory.reserve,
            "total_bytes": memory.total,
            "room_tokens": memory.room_tokens,
        },
        "host": {"least_bytes": host.least, "most_bytes": host.most},
        "verdict": candidate.verdict.value,
        "why": candidate.why or None,
        "prediction": _prediction(candidate),
        "not_predicted_because": (
            candidate.prediction.reason if isinstance(candidate.prediction, NotPredicted) else None
        ),
    }


def _prediction(candidate: Candidate) -> _Object | None:
    figures = candidate.prediction
    if isinstance(figures, NotPredicted):
        return None
    return {
        "label": figures.label,
        "tokens_per_s": round(figures.tokens_per_s, 1),
        "requests_per_s": round(figures.requests_per_s, 3),
        "ttft_s": round(figures.ttft_s, 3),
        "burst_ttft_s": round(figures.burst_ttft_s, 3),
        "step_s": round(figures.step_s, 4),
        "source": figures.source,
        "basis": figures.basis,
    }
