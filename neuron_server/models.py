"""What can be known of a model from its directory, before anything heavy is imported or loaded.

Pure reading of ``config.json`` (and ``generation_config.json``, ``neuron_config.json``): which family,
which sizes, whether it can be served at all and, if not, why. The launcher plans with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from neuron_server.compiled_model import StaticFacts, read_static
from neuron_server.errors import ModelError
from neuron_server.json_object import DTYPES, JsonObject
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

#: Texts are scaled to some multiple of the positions that were trained; a damaged file may say anything.
_MOST_SCALING = 10**6

#: Ends of architecture names that are not a causal language model (``config.architectures``).
_OTHER_HEADS = (
    *("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    *("ForMultipleChoice", "ForConditionalGeneration", "ForImageClassification", "ForCTC", "ForPreTraining"),
    "ForRewardModel",
)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model directory in numbers. What the files do not say is ``None``.

    ``max_positions``: the longest text the positions allow, in tokens; ``None`` when unbounded (ALiBi).
    ``heads`` are those of attention, ``kv_heads`` those that are *cached* (falcon's new decoder caches every
    head). ``dtype`` is the checkpoint's. ``eos_token_ids``: see ``read_eos_ids``.
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
    heads: int | None = None

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

    Raises ``ModelError`` with rule ``model_missing`` (no such directory, no ``config.json``),
    ``config_corrupt`` (not JSON, or a value that cannot be) or ``unsupported_model`` (a model of several
    parts, of which none can be read for the whole). Does not judge the family: ``check_supported``.
    """
    root = Path(path)
    try:
        if not root.is_dir():
            what = "is not a directory" if root.exists() else "does not exist"
            raise ModelError(f"model directory {str(path)!r} {what}", rule="model_missing")
        if not (root / "config.json").is_file():
            raise ModelError(f"model directory {str(path)!r} holds no config.json", rule="model_missing")
    except OSError as error:  # closed to us
        reason = f"model directory {str(path)!r} cannot be looked into: {error.strerror}"
        raise ModelError(reason, rule="model_missing") from error
    config = JsonObject.load(root / "config.json")
    _check_of_one_part(config)
    return _facts(config, read_eos_ids(root), read_static(root, config))


def read_eos_ids(path: str | Path) -> frozenset[int]:
    """The ids that end a text: those of ``generation_config.json``, else of ``config.json``, else none.

    Raises ``ModelError`` (rule ``config_corrupt``).
    """
    files = (Path(path) / name for name in ("generation_config.json", "config.json"))
    found = (JsonObject.load(file).ids("eos_token_id") for file in files if file.is_file())
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


def _check_of_one_part(config: JsonObject) -> None:
    """Refuse a model whose sizes are those of its parts: text beside images or sound."""
    if config.values.get("vocab_size") is None and isinstance(config.values.get("text_config"), dict):
        family = config.text("model_type") or ""
        reason = (
            REFUSED_FAMILIES.get(family) or "has a text_config beside others; only text models are served"
        )
        raise ModelError(f"model type {family!r} {reason}", rule="unsupported_model")


# -- reading -------------------------------------------------------------------------------------------------


def _facts(config: JsonObject, eos_token_ids: frozenset[int], static: StaticFacts | None) -> ModelFacts:
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
        dtype=config.dtype("torch_dtype", "dtype"),
        eos_token_ids=eos_token_ids,
        is_encoder_decoder=config.boolean("is_encoder_decoder"),
        quantization=(quantization.text("quant_method") or "unknown method") if quantization else None,
        static=static,
        heads=_heads(config),
    )


def _heads(config: JsonObject) -> int | None:
    return config.integer("num_attention_heads", "n_head", "n_heads", "num_heads")


def _kv_heads(config: JsonObject) -> int | None:
    heads = _heads(config)
    if config.text("model_type") == "falcon":
        # Its new decoder repeats keys and values before it caches them; the old one caches one shared head.
        shared = config.boolean("multi_query", True) and not config.boolean("new_decoder_architecture")
        return 1 if shared else heads
    return config.integer("num_key_value_heads", "num_kv_heads", "n_head_kv") or heads


def _head_dim(config: JsonObject) -> int | None:
    head_dim = config.integer("head_dim", "d_kv")
    if head_dim is not None:
        return head_dim
    hidden, heads = config.integer("hidden_size", "n_embd", "d_model"), _heads(config)
    return hidden // heads if hidden is not None and heads is not None else None


def _max_positions(config: JsonObject) -> int | None:
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
        if factor > _MOST_SCALING:
            raise scaling.wrong("factor", f"at most {_MOST_SCALING}")
        return max(longest, int((original or longest) * factor))
    return longest
