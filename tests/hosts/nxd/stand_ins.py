"""What stands in for AWS's packages where the graphs of optimum-neuron need more than a placeholder.

Everything for one core: no layer is sharded, no head is padded, nothing is gathered.
"""

from __future__ import annotations

from typing import Any

import torch
from hosts.nxd.model_builder import ModelBuilder
from torch import nn

#: What optimum-neuron 0.4.5 pins; any one version would do, as long as it is the same on both sides.
COMPILER_VERSION = "2.21.33363.0+82129205"


class Group:
    """The tensor-parallel group of one core."""

    def size(self) -> int:
        return 1


GROUP = Group()


class Linear(nn.Linear):
    """Column- or row-parallel: on one core a plain linear layer."""

    pad_size = 0

    def __init__(
        self, inputs: int, outputs: int, bias: bool = True, dtype: Any = None, **options: Any
    ) -> None:
        super().__init__(inputs, outputs, bias=bias, dtype=dtype)
        self.gather_output = options.get("gather_output", True)
        self.tensor_parallel_group = GROUP


class Embedding(nn.Embedding):
    """An embedding that is not sharded."""

    def __init__(
        self, count: int, size: int, padding_idx: int | None = None, dtype: Any = None, **_: Any
    ) -> None:
        super().__init__(count, size, padding_idx=padding_idx, dtype=dtype)


class Rank(nn.Module):
    """The rank of this core, which a device reads from its weights."""

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self.rank = nn.Parameter(torch.zeros(world_size, dtype=torch.int32), requires_grad=False)

    def get_rank(self) -> torch.Tensor:
        return self.rank[:1]


class RmsNorm:
    """The device's own kernel."""

    @staticmethod
    def apply(x: torch.Tensor, weight: torch.Tensor, eps: float, dim: int) -> torch.Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(dim, keepdim=True) + eps) * weight.float()).to(x.dtype)


class Hardware:
    """Which device: ``hardware(name)`` is the name."""

    TRN1 = "trn1"
    TRN2 = "trn2"

    def __call__(self, name: str) -> str:
        return name


class BaseModelInstance:
    """What one graph is made of; all of it is upstream's."""


def argmax(tensor: torch.Tensor, dim: int, keepdim: bool = False, **_: Any) -> torch.Tensor:
    return torch.argmax(tensor, dim=dim, keepdim=keepdim)


def topk(tensor: torch.Tensor, k: int, dim: int, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = torch.topk(tensor, k, dim=dim)
    return values, indices


def divide(total: int, parts: int) -> int:
    assert total % parts == 0, f"{total} does not divide by {parts}"
    return total // parts


def missing_to_multiple(count: int, of: int) -> int:
    return -count % of


#: module -> name -> stand-in. All else that upstream imports is a placeholder.
DEFINED: dict[str, dict[str, Any]] = {
    "neuronxcc": {"__version__": COMPILER_VERSION},
    "torch_xla": {"__version__": "2.8.0"},
    "neuronx_distributed": {"__version__": "0.15.22404"},
    "neuronx_distributed.parallel_layers": {},
    "neuronx_distributed.parallel_layers.layers": {
        "ColumnParallelLinear": Linear,
        "RowParallelLinear": Linear,
        "ParallelEmbedding": Embedding,
        "SPMDRank": Rank,
    },
    "neuronx_distributed.parallel_layers.parallel_state": {
        "model_parallel_is_initialized": lambda: True,
        "get_tensor_model_parallel_group": lambda *_, **__: GROUP,
        "get_tensor_model_parallel_size": lambda: 1,
        "get_kv_shared_group": lambda *_, **__: GROUP,
    },
    "neuronx_distributed.parallel_layers.utils": {
        "divide": divide,
        "get_padding_length": missing_to_multiple,
    },
    "neuronx_distributed.parallel_layers.pad": {"get_number_of_extra_heads": missing_to_multiple},
    "neuronx_distributed.operators.argmax": {"argmax": argmax},
    "neuronx_distributed.operators.topk": {"topk": topk},
    "neuronx_distributed.trace.hlo_utils": {
        "NXD_LAYOUT_TRANSFORMATION_OPTIONS": "NXD_LAYOUT_TRANSFORMATION_OPTIONS",  # a variable's name
    },
    "neuronx_distributed.trace.model_builder": {
        "BaseModelInstance": BaseModelInstance,
        "ModelBuilder": ModelBuilder,
    },
    "neuronx_distributed.utils.utils": {"hardware": Hardware()},
    "torch_neuronx.utils": {"get_platform_target": lambda: "trn1"},
    "torch_neuronx.xla_impl.ops": {"RmsNorm": RmsNorm},
}


def dynamic_update_slice(
    tensor: torch.Tensor, update: torch.Tensor, start_indices: list[torch.Tensor]
) -> torch.Tensor:
    """XLA's: starts are clamped so that the update fits. What we believe of it, not a proof."""
    starts = [
        min(max(int(start), 0), size - width)
        for start, size, width in zip(start_indices, tensor.shape, update.shape, strict=True)
    ]
    window = tuple(slice(start, start + width) for start, width in zip(starts, update.shape, strict=True))
    result = tensor.clone()
    result[window] = update
    return result


def fill_prefix(tensor: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """The same, all starts 0."""
    return dynamic_update_slice(tensor, update, [torch.tensor(0)] * tensor.ndim)


def cumsum(tensor_in: torch.Tensor, dim: int, on_cpu: bool = False) -> torch.Tensor:
    return torch.cumsum(tensor_in, dim)


def fill_in_primitives() -> None:
    """Replace the four functions of the graphs that are written for the compiler alone."""
    from optimum.neuron.models.inference.backend.modules.generation import sampling
    from optimum.neuron.models.inference.backend.modules.kvcache import kv_cache_manager

    kv_cache_manager.dynamic_update_slice = dynamic_update_slice
    kv_cache_manager.fill_prefix = fill_prefix
    sampling.cumsum = cumsum
    sampling.rand_like = torch.rand_like
