"""Memory of one configuration: what each core of a replica holds, and what passes through the host.

Weights and KV cache are arithmetic on the shapes. The working memory is an assumption of ours, said as such
in every report: AWS's guide to device memory names what is in it (code, scratchpad, DMA rings, collectives)
and, for a core, one number: 96 MB of microcode. A check from outside: HuggingFace's public list of cached
configurations holds Llama-3-8B on 2 cores with 8 slots of 4096 tokens, and here that fits.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.device.heads import HeadSplit
from launcher.device.instances import CORE_BYTES
from launcher.planner.dimensions import Dimensions
from neuron_server.shape import StaticShape

MICROCODE_BYTES = 96 * 10**6
#: Code of the graphs, scratchpad beyond the activations below, DMA rings, collectives: our assumption.
GRAPH_BYTES = 10**9
#: Up to here it fits; from here to the whole memory it is tight.
COMFORTABLE = 0.9
#: The serving process itself: Python, PyTorch, the runtime; our assumption.
PROCESS_BYTES = 2 * 2**30
#: At this width the prefill graph of optimum-neuron 0.4.5 uses a kernel that keeps no matrix of scores.
_FLASH_WIDTH = 4096
_SCORE_BYTES = _LOGIT_BYTES = 4

RESERVE_SAYS = (
    "96 MB of microcode (AWS's guide to device memory), 1 GB for graphs, scratchpad and DMA rings (our "
    "assumption; no figure is published), and the activations of one prefill and one row of logits per slot"
)


@dataclass(frozen=True, slots=True)
class CoreMemory:
    """Bytes on each core of a replica. ``room_tokens``: tokens of KV cache, of all slots, that would fit."""

    weights: int
    cache: int
    reserve: int
    room_tokens: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.reserve

    @property
    def share(self) -> float:
        """Of the core's memory; 1.0 is full."""
        return self.total / CORE_BYTES

    @property
    def comfortable(self) -> bool:
        """Whether so much is left that the assumed working memory may be wrong by it."""
        return self.share <= COMFORTABLE


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes of host memory while all replicas load at once: in the best and in the worst case."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Load:
    """What is placed: the shape, the width of the prefill graph, and how many prompts it runs at once."""

    shape: StaticShape
    prefill_width: int
    prefill_rows: int
    itemsize: int


def core_memory(
    sizes: Dimensions, parameters: int, split: HeadSplit, tensor_parallel: int, load: Load
) -> CoreMemory:
    """The account of one core of ``tensor_parallel``; the parameters are those of the file."""
    on_device = parameters + _added_parameters(sizes, split)
    weights = -(-on_device // tensor_parallel) * load.itemsize
    per_core = split.kv_heads_per_core(tensor_parallel)
    cache = load.shape.cache_bytes(
        layers=sizes.layers, kv_heads=per_core, head_dim=sizes.head_dim, itemsize=load.itemsize
    )
    reserve = MICROCODE_BYTES + GRAPH_BYTES + _activations(sizes, split, tensor_parallel, load)
    left = int(CORE_BYTES * COMFORTABLE) - weights - reserve
    per_token = cache // load.shape.total_tokens
    return CoreMemory(weights, cache, reserve, max(0, left // max(1, per_token)))


def host_memory(weight_bytes: int, replicas: int, *, stored: bool) -> HostMemory:
    """Host memory that ``replicas`` need while they load ``weight_bytes`` each.

    ``stored``: the weights lie in the compiled model as the device takes them. Then optimum-neuron 0.4.5 maps
    the files of all cores into memory, whose pages can be given up again, and 0.0.28 fills one layer after
    the other; what the runtime copies is not published: it may be nothing and may be all. Else all weights
    are cut for the cores in memory before the device gets the first, beside the checkpoint that they are cut
    from, which is mapped or, where its type changes, copied. All from the sources of these releases.
    """
    least, most = (0, weight_bytes) if stored else (weight_bytes, 2 * weight_bytes)
    return HostMemory(least=replicas * (PROCESS_BYTES + least), most=replicas * (PROCESS_BYTES + most))


def export_memory(weight_bytes: int) -> int:
    """Host memory that an export which stores the weights takes at least: it has all of them at once."""
    return PROCESS_BYTES + weight_bytes


def _added_parameters(sizes: Dimensions, split: HeadSplit) -> int:
    """What the device holds beyond the file: padded and replicated heads, and a tied output layer's copy.

    Norms and biases, which are small, and the padding of other widths are left out.
    """
    heads = 2 * (split.heads - sizes.heads) + 2 * (split.kv_heads - sizes.kv_heads)
    added = sizes.layers * sizes.hidden * sizes.head_dim * heads
    return added + (sizes.vocab * sizes.hidden if sizes.tied else 0)


def _activations(sizes: Dimensions, split: HeadSplit, tensor_parallel: int, load: Load) -> int:
    """The widest layer of one prefill on one core, and the logits of one decode step."""
    tokens = load.prefill_width * load.prefill_rows
    heads = split.heads // tensor_parallel
    width = 4 * sizes.hidden + 3 * -(-sizes.intermediate // tensor_parallel)
    width += (split.heads + 2 * split.kv_heads) // tensor_parallel * sizes.head_dim
    scores = 0 if load.prefill_width >= _FLASH_WIDTH else heads * tokens * load.prefill_width * _SCORE_BYTES
    return tokens * width * load.itemsize + scores + load.shape.batch_size * sizes.vocab * _LOGIT_BYTES
