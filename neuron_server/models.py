"""What can be known of a model from its directory, before anything heavy is imported or loaded.

Pure reading of ``config.json`` (and ``generation_config.json``, ``neuron_config.json``): which family,
which sizes, whether it can be served at all and, if not, why. The launcher plans with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neuron_server.errors import ModelError
from neuron_server.shape import StaticShape
from neuron_server.weights import WeightFiles, check_weights

__all__ = [
    "DTYPES",
    "EXACT_FAMILIES",
    "REFUSED_FAMILIES",
    "ModelFacts",
    "StaticFacts",
    "WeightFiles",
    "check_supported",
    "check_weights",
    "read_eos_ids",
    "read_model",
]

#: Families whose tokens equal ``transformers.generate`` in float32, one prompt at a time; the tests of the
#: backends prove each of them. Any other decoder-only family is tried with a self-check at load.
EXACT_FAMILIES: tuple[str, ...] = (
    *("bloom", "falcon", "gpt2", "gpt_neox", "granite", "llama", "mistral"),
    *("mixtral", "opt", "phi", "phi3", "qwen2", "qwen3"),
)

_ENCODER_DECODER = "is an encoder-decoder; only decoder-only causal language models are served"

_REASONS: Mapping[str, str] = {
    "keeps a recurrent state, not a KV cache of B x T, so its rows fit no static batch": """
        bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 lfm2_moe mamba mamba2 mega
        minimax nemotron_h qwen3_next recurrent_gemma rwkv xlstm zamba zamba2""",
    _ENCODER_DECODER: """
        bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder fsmt led longt5 m2m_100 marian mbart
        mt5 mvp nllb-moe pegasus pegasus_x plbart prophetnet switch_transformers t5 t5gemma umt5
        xlm-prophetnet""",
    "is an encoder, not a causal language model": """
        albert bert bert-generation big_bird camembert convbert data2vec-text deberta deberta-v2 distilbert
        electra ernie esm longformer megatron-bert mobilebert modernbert mpnet nystromformer qdqbert rembert
        roberta roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xmod""",
    "takes images or sound; only text models are served": """
        aria blip-2 clip emu3 fuyu gemma3n git got_ocr2 idefics idefics2 idefics3 instructblip internvl
        kosmos-2 llama4 llava llava_next mllama moshi musicgen musicgen_melody paligemma phi4_multimodal
        pix2struct pixtral qwen2_5_vl qwen2_audio qwen2_vl qwen3_vl speech_to_text speech_to_text_2 trocr vit
        wav2vec2 whisper""",
    "has no KV cache in transformers, so each token would recompute the whole text": "openai-gpt reformer",
    "carries a segment memory instead of a KV cache": "transfo-xl",
    "takes its local attention from the last column, which differs between the rows of a batch": "gpt_neo",
    "permutes its attention, so a left-to-right KV cache does not fit it": "xlnet",
    "works on byte patches whose lengths depend on the text, which no static shape holds": "blt",
}

#: model_type -> why it cannot be served; refused by name before any weight is read.
REFUSED_FAMILIES: Mapping[str, str] = {
    family: reason for reason, families in _REASONS.items() for family in families.split()
}

#: Ends of architecture names that are not a causal language model (``config.architectures``).
_OTHER_HEADS = (
    *("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    *("ForMultipleChoice", "ForConditionalGeneration", "ForImageClassification", "ForCTC", "ForPreTraining"),
    "ForRewardModel",
)

#: Spellings of a type -> the one used here.
DTYPES = {
    **dict.fromkeys(("float32", "fp32", "f32", "float"), "float32"),
    **dict.fromkeys(("bfloat16", "bf16"), "bfloat16"),
    **dict.fromkeys(("float16", "fp16", "f16", "half"), "float16"),
}

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
    release we know writes. What the files do not say is ``None``.
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
    max_top_k: int = 256
    checkpoint_id: str | None = None
    checkpoint_revision: str | None = None
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model directory in numbers. What the files do not say is ``None``.

    ``max_positions``: the longest text the positions allow, in tokens; ``None`` when unbounded (ALiBi).
    ``kv_heads`` counts the heads that are *cached* (falcon's new decoder caches every head). ``dtype`` is
    the checkpoint's. ``eos_token_ids``: see ``read_eos_ids``.
    """

    model_type: str
    architecture: str | None
    max_positions: int | None
    num_layers: int | None
    kv_heads: int | None
    head_dim: int | None
    vocab_size: int
    dtype: str | None
    eos_token_ids: frozenset[int] = frozenset()
    is_encoder_decoder: bool = False
    quantization: str | None = None
    static: StaticFacts | None = None

    @property
    def exact(self) -> bool:
        """Whether the family is one whose exactness the tests prove."""
        return self.model_type in EXACT_FAMILIES

    def cache_bytes(self, shape: StaticShape, itemsize: int) -> int | None:
        """Bytes of the KV cache for ``shape``; ``None`` when the config does not say enough."""
        if self.num_layers is None or self.kv_heads is None or self.head_dim is None:
            return None
        return shape.cache_bytes(
            layers=self.num_layers, kv_heads=self.kv_heads, head_dim=self.head_dim, itemsize=itemsize
        )


def read_model(path: str | Path) -> ModelFacts:
    """Facts of the model in the directory ``path``; unknown keys are ignored.

    Raises ``ModelError`` with rule ``model_missing`` (no such directory, no ``config.json``) or
    ``config_corrupt`` (not JSON, or a value that cannot be). Does not judge the family: ``check_supported``.
    """
    root = Path(path)
    if not root.is_dir():
        what = "is not a directory" if root.exists() else "does not exist"
        raise ModelError(f"model directory {str(path)!r} {what}", rule="model_missing")
    if not (root / "config.json").is_file():
        raise ModelError(f"model directory {str(path)!r} holds no config.json", rule="model_missing")
    config = _Json.load(root / "config.json")
    return _facts(config, read_eos_ids(root), _static(root, config))


def read_eos_ids(path: str | Path) -> frozenset[int]:
    """The ids that end a text: those of ``generation_config.json``, else of ``config.json``, else none.

    Raises ``ModelError`` (rule ``config_corrupt``).
    """
    files = (Path(path) / name for name in ("generation_config.json", "config.json"))
    found = (_Json.load(file).ids("eos_token_id") for file in files if file.is_file())
    return frozenset(next(filter(None, found), ()))


def check_supported(facts: ModelFacts, *, trust_remote_code: bool = False) -> None:
    """Refuse what cannot be served, by name; raises ``ModelError`` with rule ``unsupported_model``.

    ``trust_remote_code`` lets a model type pass that no table knows; a known refusal stays one.
    """
    reason = REFUSED_FAMILIES.get(facts.model_type)
    if reason is None and facts.is_encoder_decoder:
        reason = _ENCODER_DECODER
    if reason is None and facts.architecture is not None:
        head = next((h for h in _OTHER_HEADS if facts.architecture.endswith(h)), None)
        if head is not None:
            reason = (
                f"has the architecture {facts.architecture}, not a causal language model's (…ForCausalLM)"
            )
    if reason is None and facts.quantization is not None:
        reason = (
            f"is quantized ({facts.quantization}); only plain float32, bfloat16 or float16 weights are served"
        )
    if reason is None and not facts.model_type and not trust_remote_code:
        reason = "has no model_type in its config.json"
    if reason is not None:
        raise ModelError(f"model type {facts.model_type!r} {reason}", rule="unsupported_model")


# -- reading -------------------------------------------------------------------------------------------------


class _Json:
    """One JSON object and the file it came from, so that each complaint names both."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:  # Any: JSON
        self.values = values
        self.path = path

    @classmethod
    def load(cls, path: Path) -> _Json:
        try:
            values = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path} cannot be read as JSON: {error}", rule="config_corrupt") from error
        if not isinstance(values, dict):
            raise ModelError(f"{path} must hold a JSON object", rule="config_corrupt")
        return cls(values, path)

    def wrong(self, key: str, want: str) -> ModelError:
        return ModelError(
            f"{self.path}: {key} is {self.values[key]!r}, but must be {want}", rule="config_corrupt"
        )

    def integer(self, *keys: str, least: int = 1) -> int | None:
        """The first of ``keys`` that is set, as an integer of at least ``least``."""
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise self.wrong(key, f"an integer of at least {least}")
            return value
        return None

    def required(self, *keys: str) -> int:
        value = self.integer(*keys)
        if value is None:
            raise ModelError(f"{self.path} lacks {keys[0]}", rule="config_corrupt")
        return value

    def boolean(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, *keys: str) -> str | None:
        values = (self.values.get(key) for key in keys)
        return next((v for v in values if isinstance(v, str)), None)

    def object(self, key: str) -> _Json | None:
        value = self.values.get(key)
        return _Json(value, self.path) if isinstance(value, dict) else None

    def ids(self, key: str) -> tuple[int, ...]:
        value = self.values.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise self.wrong(key, "a token id or a list of token ids")
        return tuple(i for i in ids if i >= 0)


def _facts(config: _Json, eos_token_ids: frozenset[int], static: StaticFacts | None) -> ModelFacts:
    architectures = config.values.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    quantization = config.object("quantization_config")
    return ModelFacts(
        model_type=config.text("model_type") or "",
        architecture=first if isinstance(first, str) else None,
        max_positions=_max_positions(config),
        num_layers=config.integer("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
        kv_heads=_kv_heads(config),
        head_dim=_head_dim(config),
        vocab_size=config.required("vocab_size", "padded_vocab_size"),
        dtype=_dtype(config.text("torch_dtype", "dtype")),
        eos_token_ids=eos_token_ids,
        is_encoder_decoder=config.boolean("is_encoder_decoder"),
        quantization=(quantization.text("quant_method") or "unknown method") if quantization else None,
        static=static,
    )


def _dtype(word: str | None) -> str | None:
    return None if word is None else DTYPES.get(word.removeprefix("torch."), word)


def _heads(config: _Json) -> int | None:
    return config.integer("num_attention_heads", "n_head", "n_heads", "num_heads")


def _kv_heads(config: _Json) -> int | None:
    heads = _heads(config)
    if config.text("model_type") == "falcon":
        # Its new decoder repeats keys and values before it caches them; the old one caches one shared head.
        shared = config.boolean("multi_query", True) and not config.boolean("new_decoder_architecture")
        return 1 if shared else heads
    return config.integer("num_key_value_heads", "num_kv_heads", "n_head_kv") or heads


def _head_dim(config: _Json) -> int | None:
    head_dim = config.integer("head_dim", "d_kv")
    if head_dim is not None:
        return head_dim
    hidden, heads = config.integer("hidden_size", "n_embd", "d_model"), _heads(config)
    return hidden // heads if hidden is not None and heads is not None else None


def _max_positions(config: _Json) -> int | None:
    """Longest text; what ``rope_scaling`` extends counts only where every position is computed independently.

    Dynamic NTK and longrope change *all* frequencies once any position passes the original length, so a long
    neighbour would change a short row: there the original length is the limit.
    """
    family = config.text("model_type")
    if family == "bloom" or (family == "falcon" and config.boolean("alibi")):
        return None
    attention = config.object("attn_config")
    if family == "mpt" and (attention is None or attention.boolean("alibi", True)):
        return None
    longest = config.integer(
        "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length"
    )
    scaling = config.object("rope_scaling")
    if longest is None or scaling is None:
        return longest
    kind = scaling.text("rope_type", "type")
    original = scaling.integer("original_max_position_embeddings") or config.integer(
        "original_max_position_embeddings"
    )
    if kind in ("dynamic", "longrope", "su"):
        return min(longest, original or longest)
    factor = scaling.values.get("factor")
    if kind in ("linear", "yarn") and isinstance(factor, (int, float)) and factor > 1:
        return max(longest, int((original or longest) * factor))
    return longest


def _static(root: Path, config: _Json) -> StaticFacts | None:
    path = root / "neuron_config.json"
    if path.is_file():
        return _nxd(_Json.load(path))
    section = config.object("neuron")
    return None if section is None else _legacy(section)


def _nxd(neuron: _Json) -> StaticFacts:
    length = neuron.required("sequence_length")
    batch = neuron.required("max_batch_size", "batch_size")
    return StaticFacts(
        batch_size=batch,
        sequence_length=length,
        max_context_length=min(length, neuron.integer("max_context_length") or length),
        generation="nxd",
        continuous_batching=neuron.boolean("continuous_batching", batch > 1),
        cores=(neuron.integer("tp_degree") or 1) * (neuron.integer("pp_degree") or 1),
        dtype=_dtype(neuron.text("torch_dtype", "auto_cast_type")),
        optimum_version=neuron.text("optimum_neuron_version"),
        compiler_version=neuron.text("neuronxcc_version"),
        target=neuron.text("target"),
        on_device_sampling=neuron.boolean("on_device_sampling"),
        max_top_k=neuron.integer("max_topk") or 256,
        checkpoint_id=neuron.text("checkpoint_id"),
        checkpoint_revision=neuron.text("checkpoint_revision"),
    )


def _legacy(neuron: _Json) -> StaticFacts:
    nested = neuron.object("neuron_kwargs") or _Json({}, neuron.path)  # optimum-neuron 0.0.11
    length = neuron.integer("sequence_length") or nested.integer("n_positions")
    if length is None:
        raise ModelError(f"{neuron.path}: neuron lacks sequence_length", rule="config_corrupt")
    batch = neuron.required("batch_size")
    return StaticFacts(
        batch_size=batch,
        sequence_length=length,
        max_context_length=length,
        generation="legacy",
        continuous_batching=neuron.boolean("continuous_batching", batch > 1),
        cores=neuron.integer("num_cores"),
        dtype=_dtype(neuron.text("auto_cast_type")),
        compiler_version=neuron.text("compiler_version"),
        checkpoint_id=neuron.text("checkpoint_id"),
        checkpoint_revision=neuron.text("checkpoint_revision"),
    )
