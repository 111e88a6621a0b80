"""One causal language model of transformers: loading it, and calling its own forward on the static cache."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from neuron_server.backends.attention import use_grouped_attention
from neuron_server.backends.families import MaskPlan, plan_mask
from neuron_server.backends.masks import decode_mask
from neuron_server.backends.static_cache import DecodeWindow, LayerShape, PrefillWindow, StaticKVCache
from neuron_server.errors import ModelError

logger = logging.getLogger(__name__)


class CausalLM:
    """A model in evaluation mode and what its forward accepts. All calls are made in ``inference_mode``."""

    def __init__(self, model: Any) -> None:  # Any: a PreTrainedModel, which is typed in part only
        self.model = model.eval()
        use_grouped_attention(model)
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._takes_cache_position = "cache_position" in parameters
        config = model.config.get_text_config()
        self.mask_plan: MaskPlan = plan_mask(config, takes_positions=self._takes_positions)
        self._keep: int | None = None
        head = model.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(self._keep_one_position)

    def _keep_one_position(self, head: torch.nn.Module, args: tuple[Any, ...]) -> Any:  # noqa: ARG002  # Any: hook
        """Feed the head one position instead of a whole prompt: B x V logits are costly, L x V ruinous.

        A hook on the head, because not every forward has ``logits_to_keep``.
        """
        if self._keep is None or not args or args[0].ndim != 3:
            return None
        return (args[0][:, self._keep : self._keep + 1], *args[1:])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return cast("torch.dtype", self.model.dtype)

    def probe(self) -> tuple[list[LayerShape], int]:
        """(what each layer caches, width of the logits), learnt from a forward of two tokens."""
        cache: Any = DynamicCache()  # Any: as above; its layers appear as they are used
        self._keep = None
        with torch.inference_mode():
            output = self.model(input_ids=torch.tensor([[0, 1]]), past_key_values=cache, use_cache=True)
        shapes = [
            LayerShape(k.shape[1], k.shape[3], v.shape[1], v.shape[3], k.dtype)
            for k, v in ((layer.keys, layer.values) for layer in cache.layers)
        ]
        return shapes, int(output.logits.shape[-1])

    def full(self, tokens: list[int]) -> torch.Tensor:
        """Logits (L, V) of every position, without any cache: what self-checks compare with."""
        self._keep = None
        with torch.inference_mode():
            output = self.model(input_ids=torch.tensor([tokens]), use_cache=False)
        return cast("torch.Tensor", output.logits[0])

    def prefill(
        self, cache: StaticKVCache, slot: int, tokens: torch.Tensor, length: int, *, every_position: bool
    ) -> torch.Tensor:
        """Fill columns ``0 .. W - 1`` of ``slot`` with ``tokens`` (W,), of which ``length`` are real.

        Padding stands on the right, where the causal mask hides it from the real tokens.
        Returns logits (1, V) after the last real token, or (length, V) if ``every_position`` is asked for.
        """
        width = tokens.shape[0]
        cache.view(PrefillWindow(slot, width))
        self._keep = None if every_position else length - 1
        columns = torch.arange(width)
        logits = self._forward(cache, tokens[None], columns[None], columns, None)[0]  # (W or 1, V)
        if every_position:
            return logits[:length]
        return logits if logits.shape[0] == 1 else logits[length - 1 : length]

    def decode(
        self, cache: StaticKVCache, tokens: torch.Tensor, window: DecodeWindow, *, masked: bool
    ) -> torch.Tensor:
        """One token for each row of the window; logits (n, V).

        ``masked`` may be false only when every row is at the window's last column: then nothing is hidden.
        """
        cache.view(window)
        self._keep = None
        mask = decode_mask(self.mask_plan, window.positions, window.width, self.dtype) if masked else None
        last_column = torch.tensor([window.width - 1])
        logits = self._forward(cache, tokens[:, None], window.positions[:, None], last_column, mask)
        return logits[:, -1]  # (n, V)

    def _forward(
        self,
        cache: StaticKVCache,
        tokens: torch.Tensor,  # (n, q)
        positions: torch.Tensor,  # (n, q)
        cache_position: torch.Tensor,  # (q,)
        mask: Any,  # Any: transformers takes a tensor, a dict of them, or nothing
    ) -> torch.Tensor:
        given: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask}
        if self._takes_positions:
            given["position_ids"] = positions
        if self._takes_cache_position:
            given["cache_position"] = cache_position
        with torch.inference_mode():
            output = self.model(**given, past_key_values=cache, use_cache=True)
        return cast("torch.Tensor", output.logits)  # (n, q or 1, V)


def load_causal_lm(path: str | Path, dtype: str, *, trust_remote_code: bool) -> CausalLM:
    """Load a local model from safetensors only, with sdpa attention where the model has it.

    float16 becomes float32 where this CPU's torch lacks a kernel for it, with a warning. Raises
    ``ModelError``: ``unsupported_model`` (transformers cannot build it) or ``weights_corrupt`` (tensors
    missing or misshapen).
    """
    factory: Any = AutoModelForCausalLM  # Any: transformers is typed in part only
    try:
        model, report = factory.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except (ImportError, AttributeError, KeyError, ValueError, TypeError) as error:
        raise ModelError(_not_loadable(path, error), rule="unsupported_model") from error
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"the weights in {path} cannot be loaded: {error}", rule="weights_corrupt"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"the weights in {path} lack {len(missing)} tensors that the model needs, first {missing[0]!r}",
            rule="weights_corrupt",
        )
    return _with_working_dtype(CausalLM(model))


def _not_loadable(path: str | Path, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return f"the model in {path} needs code of its own; --trust-remote-code allows it to run"
    return f"transformers cannot build the model in {path}: {error}"


def _with_working_dtype(lm: CausalLM) -> CausalLM:
    if lm.dtype != torch.float16:
        return lm
    try:
        lm.probe()
    except RuntimeError as error:
        logger.warning("float16 does not run on this CPU (%s); the model is upcast to float32", error)
        lm.model.float()
    return lm
