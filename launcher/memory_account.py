"""Whether weights and KV cache fit: the host's memory on a processor, each core's own on a device.

Estimates from the files' sizes and the static shape: graphs, activations and the programs themselves come on
top, so what does not fit here does not fit at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from launcher.device.heads import split_heads
from launcher.device.instances import CORE_BYTES
from launcher.host import Host
from neuron_server.config import DType
from neuron_server.errors import ConfigError
from neuron_server.models import ModelFacts
from neuron_server.shape import StaticShape

ITEMSIZE: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Account:
    """Bytes by name, for the table of values (``None``: the files do not say), and what to warn of."""

    sizes: Mapping[str, int | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Need:
    """What is to fit. ``weight_bytes`` as the files have them; ``None``: not looked at."""

    facts: ModelFacts
    shape: StaticShape
    dtype: DType
    weight_bytes: int | None
    replicas: int = 1

    @property
    def weights(self) -> int | None:
        """Bytes of one replica's weights in ``dtype``."""
        if self.weight_bytes is None:
            return None
        itemsize = ITEMSIZE[self.dtype]
        return self.weight_bytes * itemsize // ITEMSIZE.get(self.facts.dtype or self.dtype, itemsize)

    @property
    def cache(self) -> int | None:
        """Bytes of one replica's KV cache."""
        return self.facts.cache_bytes(self.shape, ITEMSIZE[self.dtype])

    @property
    def flags(self) -> str:
        """The flags that make it so large."""
        shape = f"--max-batch-size {self.shape.batch_size} x --max-total-tokens {self.shape.max_length}"
        if self.replicas == 1:
            return f"{shape} in --dtype {self.dtype}"
        return f"--data-parallel-size {self.replicas} x {shape} in --dtype {self.dtype}"


def on_processor(need: Need, host: Host) -> Account:
    """Each replica has weights and a cache of its own. Raises ``ConfigError`` (rule ``memory``)."""
    weights, cache = _times(need.weights, need.replicas), _times(need.cache, need.replicas)
    needed = (cache or 0) + (weights or 0)
    if host.available_bytes is not None and needed > host.available_bytes:
        raise ConfigError(
            f"{need.flags} need {size(needed)} (weights {size(weights)}, KV cache {size(cache)}), but "
            f"{size(host.available_bytes)} of memory are available: choose smaller ones"
            + (", or --dtype bfloat16" if ITEMSIZE[need.dtype] > 2 else ""),
            rule="memory",
        )
    of_all = " (all replicas)" if need.replicas > 1 else ""
    return Account(
        {
            f"weights in memory{of_all}": weights,
            f"KV cache{of_all}": cache,
            "memory available": host.available_bytes,
        }
    )


def on_cores(need: Need, tensor_parallel: int, host: Host) -> Account:
    """What one core holds of a replica; ``ConfigError`` (rule ``memory``) if the cache alone is too large.

    The heads of the cache are padded and copied as ``launcher/device/heads.py`` says. Weights are
    taken to be split evenly. They only warn: files may hold more than is loaded.
    """
    cache, weights, facts = need.cache, need.weights, need.facts
    if cache is not None and facts.kv_heads:
        split = split_heads(facts.heads or facts.kv_heads, facts.kv_heads, tensor_parallel)
        cache = cache // facts.kv_heads * split.kv_heads_per_core(tensor_parallel)
    weights_of_core = None if weights is None else -(-weights // tensor_parallel)
    sizes = {"weights per core": weights_of_core, "KV cache per core": cache, "memory of a core": CORE_BYTES}
    needed = (cache or 0) + (weights_of_core or 0)
    account = f"weights {size(weights_of_core)}, KV cache {size(cache)}"
    if (cache or 0) > CORE_BYTES:
        raise ConfigError(
            f"{need.flags} on --num-shard {tensor_parallel} need {size(needed)} of each core ({account}), "
            f"but a core has {size(CORE_BYTES)}: export the model with a smaller batch or length, or for "
            "more cores",
            rule="memory",
        )
    warnings = []
    if needed > CORE_BYTES:
        warnings.append(
            f"weights and KV cache need {size(needed)} of each core ({account}), but a core has "
            f"{size(CORE_BYTES)}: loading is expected to fail"
        )
    loading = _times(weights, need.replicas)
    if loading is not None and host.available_bytes is not None and loading > host.available_bytes:
        warnings.append(
            f"the weights of {need.replicas} replica(s), {size(loading)}, pass through the memory of the "
            f"host while they are loaded, but {size(host.available_bytes)} are available: a generator may "
            "be killed"
        )
    return Account(sizes, tuple(warnings))


def size(count: int | None) -> str:
    """Bytes for people: ``1.5 GiB``; ``unknown`` when the files do not say."""
    if count is None:
        return "unknown"
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _times(count: int | None, replicas: int) -> int | None:
    return None if count is None else count * replicas
