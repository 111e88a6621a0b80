"""What a model that was compiled for Neuron says of itself, and whether its files are all there.

optimum-neuron cannot read its own files without AWS's compiler beside it, refuses keys it does not know and
every other version; so this reader parses the JSON itself, tolerates what is new, and judges no version
(``launcher/neuron_checks.py`` does). Nothing is imported, loaded or fetched.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from neuron_server.errors import ModelError
from neuron_server.json_object import JsonObject
from neuron_server.weights import INDEX, SINGLE, check_file, check_weights

NEURON_CONFIG = "neuron_config.json"
#: Where each generation keeps weights beside its graphs, and legacy its graphs.
CHECKPOINT, COMPILED = "checkpoint", "compiled"
#: Instance family -> the target that its models are compiled for (optimum-neuron 0.4.5).
TARGETS: Mapping[str, str] = MappingProxyType(
    {"inf2": "trn1", "trn1": "trn1", "trn1n": "trn1", "trn2": "trn2"}
)
#: Upstream's own default for ``max_topk``.
_MAX_TOP_K = 256

Generation = Literal["nxd", "legacy"]


@dataclass(frozen=True, slots=True)
class StaticFacts:
    """What a compiled Neuron model says of itself; it fixes B, T and much else.

    ``max_context_length`` is the width of its prefill graph. ``generation``: ``nxd`` (``neuron_config.json``,
    optimum-neuron 0.2 and later) or ``legacy`` (the ``neuron`` object in ``config.json``, up to 0.1).
    ``continuous_batching``: requests are inserted (true) or the whole cache is rebuilt for each (false).
    ``cores``: of one replica, its tensor-parallel degree included. ``target``: the kind of device (``trn1``
    stands for inf2 too). ``on_device_sampling``: it hands over tokens, of at most ``max_top_k`` candidates.
    ``checkpoint_id``: where its weights come from when they do not lie beside it. ``unknown``: keys that no
    release we know writes. ``tensor_parallel``: over how many cores each layer is spread. ``prefill_chunk``:
    width of the chunks that its prefill takes, 0 where it takes the whole prompt at once (optimum-neuron
    after 0.4.5). ``hlo``: made by the HLO backend that 0.2 had beside NxD. ``images``: it takes pictures too.
    ``obstacles``: what of it no backend here runs, with the reason; see ``check_servable``.
    What the files do not say is ``None``.
    """

    batch_size: int
    sequence_length: int
    max_context_length: int
    generation: Generation
    continuous_batching: bool
    cores: int | None = None
    dtype: str | None = None
    optimum_version: str | None = None
    compiler_version: str | None = None
    target: str | None = None
    on_device_sampling: bool = False
    max_top_k: int = _MAX_TOP_K
    checkpoint_id: str | None = None
    checkpoint_revision: str | None = None
    unknown: tuple[str, ...] = ()
    tensor_parallel: int | None = None
    prefill_chunk: int = 0
    hlo: bool = False
    images: bool = False
    obstacles: tuple[str, ...] = ()

    @property
    def form(self) -> str:
        """``batch size 4, sequence length 4096, tensor parallel 2, bfloat16, sampling on the device``"""
        parts = [f"batch size {self.batch_size}", f"sequence length {self.sequence_length}"]
        if self.tensor_parallel is not None:
            parts.append(f"tensor parallel {self.tensor_parallel}")
        if self.dtype is not None:
            parts.append(self.dtype)
        if self.max_context_length < self.sequence_length:
            parts.append(f"prompts up to {self.max_context_length}")
        parts.append("sampling on the device" if self.on_device_sampling else "sampling on the host")
        return ", ".join(parts)


def read_static(root: Path, config: JsonObject) -> StaticFacts | None:
    """The facts of the compiled model in ``root``, whose ``config.json`` is ``config``; ``None`` if plain.

    Raises ``ModelError`` (rule ``config_corrupt``).
    """
    path = root / NEURON_CONFIG
    if path.is_file():
        return _nxd(JsonObject.load(path))
    section = config.object("neuron")
    return None if section is None else _legacy(section, config.text("model_type"))


def static_of(values: Mapping[str, Any], where: str) -> StaticFacts:  # Any: JSON
    """The facts in one configuration object, of either generation, as an entry of a compile cache is.

    Raises ``ModelError`` (rule ``config_corrupt``) that names ``where``.
    """
    entry = JsonObject(values, Path(where))
    return (
        _nxd(entry)
        if {"_serialized_key", "tp_degree"} & set(values)
        else _legacy(entry, entry.text("model_type"))
    )


def check_servable(path: str | Path, static: StaticFacts) -> None:
    """Raise ``ModelError`` (rule ``unsupported_model``) for a model with ``obstacles``; ``path`` is told."""
    if static.obstacles:
        raise ModelError(
            f"the model in {path} was compiled with {static.obstacles[0]}. Compile it again "
            "(text-generation-server export)",
            rule="unsupported_model",
        )


#: Keys of ``neuron_config.json`` by what writes them; those of images and of chunks are of the
#: development version after 0.4.5.
_COMMON = """
    _serialized_key batch_size capacity_factor checkpoint_id checkpoint_revision continuous_batching ep_degree
    fused_qkv glu_mlp local_ranks_size max_batch_size max_context_length max_topk n_active_tokens
    neuronxcc_version on_device_sampling optimum_neuron_version output_logits pp_degree sequence_length
    speculation_length start_rank_id target torch_dtype tp_degree"""
_UP_TO_0_3 = """
    async_mode attn_kernel_enabled cc_pipeline_tiling_factor enable_bucketing flash_decoding_enabled
    is_chunked_prefill logical_nc_config mlp_kernel_enabled mlp_kernel_fuse_residual_add num_cores_per_group
    padding_side qk_layernorm qkv_kernel_enabled rpl_reduce_dtype sequence_parallel_enabled vocab_parallel"""
_HLO = """
    all_reduce_dtype allow_flash_attention attention_layout attn_output_transposed auto_cast_type
    collectives_layout fuse_qkv group_query_attention log_softmax_scores output_all_logits"""
_IMAGES = "max_num_images image_size image_seq_len"
_AFTER_0_4_5 = "prefill_chunk_size dtype"
_OF_LEGACY = """
    auto_cast_type batch_size checkpoint_id checkpoint_revision compiler_type compiler_version
    continuous_batching disable_fallback dynamic_batch_size input_names model_type neuron_kwargs num_cores
    output_names sequence_length task"""
_NXD_KEYS = frozenset(" ".join((_COMMON, _UP_TO_0_3, _HLO, _IMAGES, _AFTER_0_4_5)).split())
_LEGACY_KEYS = frozenset(_OF_LEGACY.split())


#: What an NxD model may say that is not served: key -> (the values that are, why others are not).
_SERVED: Mapping[str, tuple[tuple[Any, ...], str]] = {  # Any: JSON
    "_serialized_key": (
        (None, "NxDNeuronConfig"),
        "only text models of the NxD backend are served (HLO models of 0.2 are not)",
    ),
    "speculation_length": ((None, 0), "a speculative graph serves one request at a time, greedily"),
    "prefill_chunk_size": ((None, 0), "chunked prefill needs a later release than 0.4.5"),
    "output_logits": ((None, False), "logits beside the result are not read"),
    "padding_side": ((None, "right"), "prompts are padded on the right"),
    "async_mode": ((None, False), "every call waits for its result"),
    "is_chunked_prefill": ((None, False), "prompts are prefilled whole"),
    # 0.3 chooses the prefill graph by counting the tokens of a prompt that are not the pad token.
    "enable_bucketing": ((None, False), "a prompt with pad tokens in it would be cut short without a word"),
}


def _obstacles(neuron: JsonObject, batch: int, width: int) -> Iterator[str]:
    for key, (served, reason) in _SERVED.items():
        value = neuron.values.get(key)
        if value not in served:
            yield f"{key} {value!r}, which is not served: {reason}"
    size = neuron.integer("batch_size")
    if size not in (None, batch):
        yield f"batch_size {size} and max_batch_size {batch}; only equal ones are served"
    if width < 2:
        yield f"max_context_length {width}, but a prefill takes at least 2 tokens"


def _nxd(neuron: JsonObject) -> StaticFacts:
    length = neuron.required("sequence_length")
    smallest = neuron.required("batch_size", "max_batch_size")
    batch = neuron.integer("max_batch_size") or smallest
    chunk = neuron.integer("prefill_chunk_size", least=0) or 0
    parallel = neuron.integer("tp_degree") or 1
    others = (neuron.integer("pp_degree") or 1) * (neuron.integer("ep_degree") or 1)
    width = min(length, neuron.integer("max_context_length") or length)
    return StaticFacts(
        batch_size=batch,
        sequence_length=length,
        max_context_length=width,
        generation="nxd",
        continuous_batching=neuron.boolean("continuous_batching", batch > 1),
        cores=parallel * others,
        dtype=neuron.dtype("torch_dtype", "dtype", "auto_cast_type"),
        optimum_version=neuron.text("optimum_neuron_version"),
        compiler_version=neuron.text("neuronxcc_version"),
        target=neuron.text("target"),
        on_device_sampling=neuron.boolean("on_device_sampling"),
        max_top_k=neuron.integer("max_topk") or _MAX_TOP_K,
        checkpoint_id=neuron.text("checkpoint_id"),
        checkpoint_revision=neuron.text("checkpoint_revision"),
        unknown=tuple(sorted(set(neuron.values) - _NXD_KEYS)),
        tensor_parallel=parallel,
        prefill_chunk=min(chunk, length),
        hlo=neuron.text("_serialized_key") == "HloNeuronConfig",
        images=bool(set(_IMAGES.split()) & set(neuron.values)),
        obstacles=tuple(_obstacles(neuron, batch, width)),
    )


#: Why models of the first releases, which are known by their ``neuron_kwargs``, are not served.
_STATEFUL = (
    "optimum-neuron 0.0.11 or a release near it (its config.json has neuron.neuron_kwargs): its models keep "
    "the position of the batch to themselves and attend to the padding of prompts"
)

#: Families that the legacy generation compiles without continuous batching whatever the batch size.
ALWAYS_STATIC = frozenset(("gpt2", "opt", "bloom", "mixtral"))


def _legacy(neuron: JsonObject, family: str | None) -> StaticFacts:
    oldest = neuron.object("neuron_kwargs")  # optimum-neuron 0.0.11, which had no continuous batching
    nested = oldest or JsonObject({}, neuron.path)
    length = neuron.integer("sequence_length") or nested.integer("n_positions")
    if length is None:
        raise ModelError(f"{neuron.path}: neuron lacks sequence_length", rule="config_corrupt")
    batch = neuron.required("batch_size")
    cores = neuron.integer("num_cores")
    inserts = batch > 1 and oldest is None and family not in ALWAYS_STATIC
    return StaticFacts(
        batch_size=batch,
        sequence_length=length,
        max_context_length=length,
        generation="legacy",
        continuous_batching=neuron.boolean("continuous_batching", inserts),
        cores=cores,
        dtype=neuron.dtype("auto_cast_type"),
        compiler_version=neuron.text("compiler_version"),
        checkpoint_id=neuron.text("checkpoint_id"),
        checkpoint_revision=neuron.text("checkpoint_revision"),
        unknown=tuple(sorted(set(neuron.values) - _LEGACY_KEYS)),
        tensor_parallel=cores,
        obstacles=() if oldest is None else (_STATEFUL,),
    )


# -- files ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CompiledFiles:
    """The graphs and the weights of a compiled model, and the weights' bytes on disk."""

    graphs: tuple[Path, ...]
    weights: tuple[Path, ...]
    weight_bytes: int


def lacks_weights(root: Path) -> bool:
    """Whether the compiled model in ``root`` has no weights of its own: ``checkpoint_id`` has them then."""
    return not any((root / name).exists() for name in (CHECKPOINT, SINGLE, INDEX))


def stores_cut_weights(root: Path, static: StaticFacts) -> bool:
    """Whether the weights lie in ``root`` as a load takes them: cut for the cores, or, legacy, by layers."""
    checkpoint = root / CHECKPOINT
    if static.generation == "legacy" or static.hlo:
        return os.path.isdir(checkpoint)
    return os.path.isfile(checkpoint / "weights" / _shard(0))


def check_compiled_files(root: Path, static: StaticFacts) -> CompiledFiles:
    """The files that loading needs; raises ``ModelError`` with what is missing or damaged.

    Rules ``weights_missing`` (a graph or weights are not there) and ``weights_corrupt``. The order in which
    weights are looked for is optimum-neuron's: ``checkpoint/``, then beside the graphs.
    """
    graphs = _hlo_graphs(root) if static.generation == "legacy" or static.hlo else _nxd_graphs(root)
    weights = _weights(root, static)
    return CompiledFiles(graphs, weights, sum(path.stat().st_size for path in weights))


def _nxd_graphs(root: Path) -> tuple[Path, ...]:
    graphs = tuple(sorted(f for pattern in ("model.pt", "model_*.pt") for f in root.glob(pattern)))
    if not graphs:
        raise ModelError(
            f"{root} has a {NEURON_CONFIG}, but neither model.pt nor a model_*.pt with the compiled graphs: "
            "fetch or copy the model again, whole",
            rule="weights_missing",
        )
    for graph in graphs:
        _check_not_a_pointer(graph)
        if not zipfile.is_zipfile(graph):
            raise ModelError(
                f"{graph} ({graph.stat().st_size} bytes) is no TorchScript archive, or is cut short: fetch "
                "or copy the model again",
                rule="weights_corrupt",
            )
    return graphs


def _hlo_graphs(root: Path) -> tuple[Path, ...]:
    directory = root / COMPILED
    graphs = tuple(sorted(f for f in directory.rglob("*") if f.is_file())) if directory.is_dir() else ()
    if not graphs:
        what = "is empty" if directory.is_dir() else "is missing"
        raise ModelError(
            f"{root} was compiled for Neuron, but its directory {COMPILED}/ with the graphs (NEFF files) "
            f"{what}: fetch or copy the model again, whole",
            rule="weights_missing",
        )
    for graph in graphs:
        _check_not_a_pointer(graph)
        if graph.stat().st_size == 0:
            raise ModelError(f"{graph} is empty: fetch or copy the model again", rule="weights_corrupt")
    return graphs


def _weights(root: Path, static: StaticFacts) -> tuple[Path, ...]:
    checkpoint = root / CHECKPOINT
    if checkpoint.is_dir():
        shards = checkpoint / "weights"
        if static.generation == "nxd" and (shards / _shard(0)).exists():
            return _check_shards(shards, static)
        if static.generation == "legacy" and not any(checkpoint.glob("*.safetensors*")):
            return _any_files(checkpoint)  # transformers-neuronx has formats of its own
        return check_weights(checkpoint).files
    if not lacks_weights(root):
        return check_weights(root).files
    if static.checkpoint_id is None:
        raise ModelError(
            f"{root} holds compiled graphs but no weights: neither {CHECKPOINT}/ nor {SINGLE}, and its "
            "configuration names no checkpoint_id to take them from",
            rule="weights_missing",
        )
    at = f" at revision {static.checkpoint_revision}" if static.checkpoint_revision else ""
    raise ModelError(
        f"{root} holds compiled graphs but no weights; they are those of {static.checkpoint_id}{at}: run "
        f"text-generation-server download-weights {static.checkpoint_id}"
        f"{f' --revision {static.checkpoint_revision}' if at else ''} where there is a network",
        rule="weights_missing",
    )


def _shard(rank: int) -> str:
    return f"tp{rank}_sharded_checkpoint.safetensors"


def _check_shards(directory: Path, static: StaticFacts) -> tuple[Path, ...]:
    """One file for each core; the loader takes all of them where it sees the first."""
    paths = tuple(directory / _shard(rank) for rank in range(static.cores or 1))
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ModelError(
            f"{directory} lacks {missing[0]}: the model was compiled for {len(paths)} cores, and each has a "
            "file of weights",
            rule="weights_missing",
        )
    for path in paths:
        _check_not_a_pointer(path)
        check_file(path)
    return paths


def _any_files(directory: Path) -> tuple[Path, ...]:
    paths = tuple(sorted(f for f in directory.rglob("*") if f.is_file() and f.name != "config.json"))
    if not paths:
        raise ModelError(f"{directory} holds no weights", rule="weights_missing")
    for path in paths:
        _check_not_a_pointer(path)
    return paths


def _check_not_a_pointer(path: Path) -> None:
    """A clone without git-lfs has a few lines of text in the place of each large file."""
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise ModelError(
                f"{path} is a pointer of git-lfs, not the file itself: run git lfs pull in the clone",
                rule="weights_corrupt",
            )
