"""Who chooses the next tokens: the host, from logits, or the device. The one place where outputs differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from neuron_server.backend import GREEDY, BackendInfo, DeviceSampling, Output
from neuron_server.device_sampling import device_sampling
from neuron_server.engine.sampling import sample
from neuron_server.engine.slot import Slot
from neuron_server.engine.warp import Choice
from neuron_server.errors import GenerationError, NeuronTgiError
from neuron_server.request import SamplingParams

#: What became of a row: ``None`` and errors end its request.
Chosen = Choice | NeuronTgiError | None

#: A slot of any key: choosing does not look at it.
AnySlot = Slot[Any]


class Chooser(Protocol):
    """How a request is told to the backend, and what its output means."""

    def row(self, params: SamplingParams, /) -> DeviceSampling:
        """For the rows of a request that has passed ``submission.check``."""
        ...

    def choose(self, output: Output, places: Sequence[int], slots: Sequence[AnySlot], /) -> Sequence[Chosen]:
        """The next token of each of ``slots``, whose rows of ``output`` are ``places``."""
        ...


class HostChooser:
    """Samples from logits: see ``sample``."""

    def row(self, _params: SamplingParams) -> DeviceSampling:
        return GREEDY  # nobody looks

    def choose(self, output: Output, places: Sequence[int], slots: Sequence[AnySlot], /) -> Sequence[Chosen]:
        logits = output.logits
        picked = logits if len(places) == len(logits) else logits[list(places)]  # (d, V)
        return sample(picked, [slot.sample_row() for slot in slots])


class DeviceChooser:
    """Takes the tokens that the device chose. Nothing is computed, so there are no log-probabilities."""

    def __init__(self, info: BackendInfo) -> None:
        self._vocab_size = info.vocab_size
        self._max_top_k = info.max_top_k

    def row(self, params: SamplingParams) -> DeviceSampling:
        return device_sampling(params, self._max_top_k, approximate_top_p=True)  # where it was allowed

    def choose(self, output: Output, places: Sequence[int], _slots: Sequence[AnySlot], /) -> Sequence[Chosen]:
        tokens = handed_over(output)[list(places)].tolist()  # (d,)
        return [
            Choice(token, None) if 0 <= token < self._vocab_size else self._stray(token) for token in tokens
        ]

    def _stray(self, token: int) -> GenerationError:
        return GenerationError(
            f"the device chose token {token} for this request; the vocabulary has {self._vocab_size} tokens"
        )


def chooser(info: BackendInfo) -> Chooser:
    """The one that fits what the backend hands over."""
    return DeviceChooser(info) if info.samples else HostChooser()


def handed_over(output: Output) -> npt.NDArray[np.int64]:
    """The tokens (n,) of a backend that samples."""
    assert output.tokens is not None, "a backend that samples hands over tokens"
    return output.tokens
