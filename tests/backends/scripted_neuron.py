"""A model object with the ``forward`` of optimum-neuron 0.3 and 0.4, on a memory of B x T tokens.

It writes where the compiled graphs write, also into slots that nobody named, and refuses what they were not
compiled for. Its logits are a hash of the tokens that a row attends to, so a wrong call changes them.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from neuron_server.backend import BackendInfo, OutputKind, PrefillMode
from neuron_server.backends.neuron import NeuronBackend
from neuron_server.shape import StaticShape

V = 64


def alone(tokens: list[int]) -> np.ndarray:
    """Logits (L, V) after each token of a text."""
    return np.stack([_logits(tokens[: n + 1]) for n in range(len(tokens))])


def _logits(text: list[int]) -> np.ndarray:
    return np.random.default_rng(text).normal(size=V).astype(np.float32)


class ScriptedModel:
    """``wrapped``: whether the result is element 0 of a tuple, as before 0.4.4.

    ``padded``: how many columns beyond V the logits have. ``calls``: the keyword arguments of every call, as
    lists, and ``addresses`` where their tensors lie. ``fails``: raised by the next call.
    """

    def __init__(
        self, info: BackendInfo, width: int, *, wrapped: bool = False, padded: int = 0, one_row: bool = True
    ) -> None:
        self.info, self.width = info, width
        self.wrapped, self.padded, self.one_row = wrapped, padded, one_row
        size, length = info.shape.batch_size, info.shape.max_length
        self.cells = np.random.default_rng(0).integers(V, 2 * V, (size, length))
        self.calls: list[dict[str, list[object]]] = []
        self.addresses: set[tuple[int, ...]] = set()
        self.fails: Exception | None = None
        self.answer: torch.Tensor | None = None
        self.neuron_config = SimpleNamespace(
            batch_size=size,
            sequence_length=length,
            max_context_length=width,
            continuous_batching=one_row,
            on_device_sampling=info.samples,
        )

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        seq_ids: torch.Tensor,
        sampling_params: torch.Tensor,
    ) -> object:
        if self.fails is not None:
            raise self.fails
        given = (input_ids, position_ids, seq_ids, sampling_params)
        assert [tensor.dtype for tensor in given] == [torch.int64] * 3 + [torch.float32]
        assert input_ids.shape == position_ids.shape
        assert seq_ids.shape == input_ids.shape[:1]
        assert sampling_params.shape == (len(seq_ids), 3)
        names = ("input_ids", "position_ids", "seq_ids", "sampling_params")
        self.calls.append({n: tensor.tolist() for n, tensor in zip(names, given, strict=True)})
        self.addresses.add(tuple(tensor.data_ptr() for tensor in given))
        if self.answer is not None:
            return self.answer
        run = self._prefill if input_ids.shape[1] > 1 else self._decode
        logits = run(input_ids.numpy(), position_ids.numpy(), seq_ids.tolist())  # (n, V)
        return self._as_upstream(np.pad(logits, ((0, 0), (0, self.padded)), constant_values=9.0))

    def _as_upstream(self, logits: np.ndarray) -> object:
        if self.info.samples:
            tensor = torch.from_numpy(logits[:, :V].argmax(-1)).to(torch.int32)  # (n,)
        else:
            tensor = torch.from_numpy(logits)[:, None]  # (n, 1, V + padding)
        return (tensor,) if self.wrapped else tensor

    def _prefill(self, tokens: np.ndarray, positions: np.ndarray, slots: list[int]) -> np.ndarray:
        assert tokens.shape[1] == self.width
        assert positions.min() == 0
        if not self.one_row:
            assert slots == list(range(len(self.cells)))
        self.cells[slots, : self.width] = tokens
        texts = [self.cells[s, : p.argmax() + 1] for s, p in zip(slots, positions, strict=True)]
        return np.stack([_logits(text.tolist()) for text in texts])

    def _decode(self, tokens: np.ndarray, positions: np.ndarray, slots: list[int]) -> np.ndarray:
        if not self.one_row:
            assert slots == list(range(len(self.cells)))
        for slot in set(range(len(self.cells))) - set(slots):
            self.cells[slot, positions[0, 0]] = tokens[0, 0]
        self.cells[slots, positions[:, 0]] = tokens[:, 0]
        texts = [self.cells[s, : p[0] + 1] for s, p in zip(slots, positions, strict=True)]
        return np.stack([_logits(text.tolist()) for text in texts])


def scripted(
    shape: StaticShape,
    width: int,
    mode: PrefillMode = "insert",
    output: OutputKind = "logits",
    **options: int,
) -> tuple[NeuronBackend, ScriptedModel]:
    """A backend and the model below it."""
    info = BackendInfo(
        shape,
        min(width, shape.max_length - 1),
        V,
        mode,
        output,
        device="neuron (scripted)",
        max_top_k=V if output == "tokens" else 0,
    )
    model = ScriptedModel(info, width, one_row=mode == "insert", **options)
    return NeuronBackend(model, info, width), model
