"""The sizes of a model that memory is counted from, read out of its ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neuron_server.errors import ModelError
from neuron_server.json_object import JsonObject
from neuron_server.models import ModelFacts

#: No model is larger; a number beyond is a damaged file, not a model (and would end in absurd sums).
MOST = 10**9
_MOST_LAYERS = _MOST_HEADS = 10_000


class ConfigNumbers:
    """The values of one ``config.json``, bounded; every complaint names the file, the key and the value."""

    def __init__(self, config: JsonObject) -> None:
        self._config = config
        self.path = config.path

    @classmethod
    def load(cls, root: str | Path) -> ConfigNumbers:
        """Read ``config.json``; raises ``ModelError`` (rule ``config_corrupt``)."""
        return cls(JsonObject.load(Path(root) / "config.json"))

    def number(self, *keys: str, most: int = MOST) -> int | None:
        """The first of ``keys`` that is set, from 1 to ``most``; ``None`` when none is."""
        for key in keys:
            value = self._config.integer(key)
            if value is not None and value > most:
                raise self._config.wrong(key, f"at most {most}: no model is larger")
            if value is not None:
                return value
        return None

    def needed(self, *keys: str, most: int = MOST) -> int:
        """The first of ``keys``, one of which must be set."""
        value = self.number(*keys, most=most)
        if value is None:
            raise corrupt(self.path, f"lacks {keys[0]}, without which no memory can be counted")
        return value

    def switch(self, key: str, default: bool) -> bool:
        """A truth value; ``default`` when it is absent."""
        return self._config.boolean(key, default)

    def ids(self, key: str) -> tuple[int, ...]:
        """A list of numbers; empty when it is absent."""
        return self._config.ids(key)


def count(number: int) -> str:
    """A number of parameters for people: ``8.03 B``, ``124 M``."""
    return f"{number / 1e9:.2f} B" if number >= 10**9 else f"{number / 1e6:.0f} M"


def corrupt(path: Path, what: str) -> ModelError:
    """The error for a configuration that cannot be."""
    return ModelError(f"{path} {what}", rule="config_corrupt")


@dataclass(frozen=True, slots=True)
class Dimensions:
    """``kv_heads`` are the heads that are cached; ``intermediate`` is the width of the (dense) MLP.

    ``tied``: output layer and embedding are one tensor in the file. ``experts`` is 1 for a dense model.
    """

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    experts: int = 1

    @property
    def width(self) -> int:
        """heads x head_dim, which need not be the hidden size."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """kv_heads x head_dim."""
        return self.kv_heads * self.head_dim


#: Families whose config class ties the output layer to the embedding when the file does not say.
_TIED = frozenset({"gpt2", "opt", "bloom", "smollm3", "gemma3_text"})


def read_dimensions(config: ConfigNumbers, facts: ModelFacts) -> Dimensions:
    """The sizes of the model.

    Raises ``ModelError`` (rule ``config_corrupt``) for what is absent, absurd or contradictory.
    """
    layers = config.needed("num_hidden_layers", "n_layer", "num_layers", "n_layers", most=_MOST_LAYERS)
    heads = config.needed("num_attention_heads", "n_head", "n_heads", "num_heads", most=_MOST_HEADS)
    hidden = config.needed("hidden_size", "n_embd", "d_model", most=10**6)
    config.needed("vocab_size", "padded_vocab_size")
    kv_heads, head_dim = facts.kv_heads or heads, facts.head_dim or hidden // heads
    if kv_heads > heads or heads % kv_heads:
        raise corrupt(
            config.path, f"has {kv_heads} KV heads for {heads} attention heads; it must divide them"
        )
    if config.number("head_dim", "d_kv", most=10**6) is None and hidden % heads:
        raise corrupt(config.path, f"has a hidden size of {hidden}, which {heads} heads do not divide")
    return Dimensions(
        model_type=facts.model_type,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=config.number("intermediate_size", "n_inner", "ffn_dim") or 4 * hidden,
        vocab=facts.vocab_size,
        tied=config.switch("tie_word_embeddings", facts.model_type in _TIED),
        experts=config.number("num_local_experts", "num_experts", most=_MOST_HEADS) or 1,
    )
