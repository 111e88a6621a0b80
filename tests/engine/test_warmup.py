import numpy as np
import pytest
from conformance import NO_SHARD_RPC
from model_backend import ModelBackend

from neuron_server.backend import Output
from neuron_server.engine.warmup import warm_up
from neuron_server.errors import ModelError

MODES = ["insert", "rebuild"]


@pytest.mark.case(180, deviation=NO_SHARD_RPC)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("slots", "length"), [(1, 2), (1, 3), (4, 2), (5, 20), (32, 64)])
def test_runs_every_path_and_leaves_every_slot_free(mode: str, slots: int, length: int) -> None:
    backend = ModelBackend(slots, length, mode=mode)
    warm_up(backend)
    assert not backend.live
    kinds = {call for call, _ in backend.calls}
    assert kinds == ({"decode"} if mode == "insert" and length == 2 else {"prefill", "decode"})
    widths = {len(rows) for call, rows in backend.calls if call == "decode"}
    assert {1, slots} <= widths


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_makes_nan_is_refused(mode: str) -> None:
    class Broken(ModelBackend):
        def decode(self, rows: object) -> Output:
            output = super().decode(rows)
            output.logits[-1, 3] = np.nan
            return output

    with pytest.raises(ModelError, match="not finite"):
        warm_up(Broken(4, 16, mode=mode))


def test_logits_of_the_wrong_width_are_refused() -> None:
    class Padded(ModelBackend):
        def decode(self, rows: object) -> Output:
            return Output(super().decode(rows).logits[:, :-1])

    with pytest.raises(ModelError, match=r"\(1, 49\), expected \(1, 50\)"):
        warm_up(Padded(4, 16))


def test_masked_logits_are_fine() -> None:
    class Masked(ModelBackend):
        def decode(self, rows: object) -> Output:
            output = super().decode(rows)
            output.logits[:, 10:] = -np.inf
            return output

    warm_up(Masked(4, 16))
