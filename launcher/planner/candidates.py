"""One configuration on one instance, judged: does it fit, and how fast would it be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from launcher.device.heads import HeadSplit, split_heads
from launcher.device.instances import CORE_BYTES, Instance
from launcher.planner import families
from launcher.planner.families import Mode, Support
from launcher.planner.memory import COMFORTABLE, CoreMemory, HostMemory, Load, core_memory, host_memory
from launcher.planner.planned import PlannedModel
from launcher.planner.prediction import Case, NotPredicted, Prediction, Workload, predict
from neuron_server.shape import StaticShape

#: Slots that are tried; HuggingFace publishes compiled models and figures for these.
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 48)


class Verdict(str, Enum):
    """Whether a configuration can run; ``tight`` means within a tenth of the memory."""

    FITS = "fits"
    TIGHT = "tight"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One configuration on one instance. ``why`` explains a verdict that is not ``fits``."""

    tensor_parallel: int
    replicas: int
    shape: StaticShape
    mode: Mode
    split: HeadSplit
    memory: CoreMemory
    host: HostMemory
    verdict: Verdict
    why: str
    prediction: Prediction | NotPredicted

    @property
    def tokens_per_s(self) -> float | None:
        """Predicted throughput of all replicas."""
        return self.prediction.tokens_per_s if isinstance(self.prediction, Prediction) else None


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user set, or the model was compiled for; ``None``: free."""

    length: int
    batch_size: int | None = None
    tensor_parallel: int | None = None
    replicas: int | None = None
    itemsize: int = 2
    prefill_width: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every instance."""

    model: PlannedModel
    support: Support
    wish: Wish
    workload: Workload


def judge(instance: Instance, question: Question, degree: int) -> Iterator[Candidate]:
    """Every batch size that is tried with ``degree`` cores per replica, smallest first."""
    wanted = question.wish.batch_size
    for slots in BATCH_SIZES if wanted is None else (wanted,):
        yield _judged(instance, question, degree, slots)


def _judged(instance: Instance, question: Question, degree: int, slots: int) -> Candidate:
    model, support, wish = question.model, question.support, question.wish
    sizes, shape = model.sizes, StaticShape(slots, wish.length)
    replicas = wish.replicas or instance.cores // degree
    mode = model.mode or families.mode(support, sizes.model_type, tensor_parallel=degree, batch_size=slots)
    split = split_heads(sizes.heads, sizes.kv_heads, degree)
    width = wish.prefill_width or wish.length
    load = Load(shape, width, 1 if mode.inserts else slots, wish.itemsize)
    memory = core_memory(sizes, model.parameters, split, degree, load)
    legacy, static = support.generation == "legacy", model.facts.static
    host = host_memory(memory.weights * degree, replicas, stored=model.stores_weights)
    verdict, why = _verdict(instance, memory, host, shape)
    case = Case(
        parameters=model.parameters,
        tensor_parallel=degree,
        replicas=replicas,
        slots=slots,
        prefill_width=width,
        inserts=mode.inserts,
        on_device_sampling=mode.on_device_sampling,
        dense=sizes.experts == 1,
        legacy=legacy or (static is not None and static.hlo),
        itemsize=wish.itemsize,
        whole_prefill=static is None or static.prefill_chunk == 0,
    )
    return Candidate(
        degree, replicas, shape, mode, split, memory, host, verdict, why, predict(case, question.workload)
    )


def _verdict(
    instance: Instance, memory: CoreMemory, host: HostMemory, shape: StaticShape
) -> tuple[Verdict, str]:
    """The verdict and its sentence."""
    device = (
        f"{gigabytes(memory.total)} of each core's {gigabytes(CORE_BYTES)} (weights "
        f"{gigabytes(memory.weights)}, KV cache of {shape} {gigabytes(memory.cache)}, working memory "
        f"{gigabytes(memory.reserve)})"
    )
    loading = f"of the {gibibytes(instance.host_bytes)} of host memory of {instance.name}"
    if memory.total > CORE_BYTES:
        return Verdict.NO, f"needs {device}"
    if host.least > instance.host_bytes:
        return Verdict.NO, (
            f"loading needs at least {gibibytes(host.least)} {loading}: the compiled model has no weights "
            "beside it that are cut for its cores, so all are cut in memory first; compiled from a local "
            "directory it has"
        )
    doubts = []
    if not memory.comfortable:
        doubts.append(f"takes {device}; the working memory is assumed, so it may not load")
    if host.most > COMFORTABLE * instance.host_bytes:
        doubts.append(
            f"loading takes {gibibytes(host.least)} to {gibibytes(host.most)} {loading}; what is copied "
            "there on the way to the device is not published"
        )
    return (Verdict.TIGHT if doubts else Verdict.FITS), "; and ".join(doubts)


def gigabytes(count: float) -> str:
    """Bytes of device memory, as its makers count them."""
    return f"{count / 1e9:.1f} GB"


def gibibytes(count: float) -> str:
    """Bytes of host memory, as the instances are described."""
    size = count / 2**30
    return f"{size:.1f} GiB" if size < 100 and size % 1 else f"{size:.0f} GiB"
