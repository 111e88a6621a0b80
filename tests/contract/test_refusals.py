"""Group 11: every wrong call has its own error and changes nothing, not a bit of what others get next."""

from __future__ import annotations

from typing import Any

import pytest
from conformance import NO_SHARD_RPC
from contract.twins import Twins
from contract.world import B, C, T

from neuron_server import errors
from neuron_server.backend import Backend, DecodeRow, PrefillRow

pytestmark = pytest.mark.group(11)

#: The vocabulary of every subject's model.
V = 64

TOO_MANY = (errors.BatchTooLargeError, errors.SlotDuplicateError)

REFUSED_PREFILLS: list[tuple[list[PrefillRow], Any]] = [
    ([PrefillRow(0, [])], errors.EmptyPromptError),
    ([PrefillRow(0, [1] * (T + 1))], errors.PromptTooLongError),
    ([PrefillRow(0, [1] * T)], errors.PromptTooLongError),
    ([PrefillRow(B, [1, 2])], errors.SlotOutOfRangeError),
    ([PrefillRow(-1, [1, 2])], errors.SlotOutOfRangeError),
    ([PrefillRow(0, [1, 2]), PrefillRow(0, [1, 2])], errors.SlotDuplicateError),
    ([PrefillRow(0, [1, V])], errors.TokenOutOfRangeError),
    ([PrefillRow(0, [-1, 1])], errors.TokenOutOfRangeError),
    ([PrefillRow(slot % B, [1, 2]) for slot in range(B + 1)], TOO_MANY),
]
REFUSED_INSERTS: list[tuple[list[PrefillRow], Any]] = [
    ([PrefillRow(0, [1, 2]), PrefillRow(1, [1, 2])], errors.SlotBusyError),
    ([PrefillRow(0, [1, 2]), PrefillRow(3, [1])], errors.OneTokenPromptError),
    ([PrefillRow(0, [1] * (C + 1))], errors.PromptTooLongError),
    ([PrefillRow(0, [1, 2]), PrefillRow(3, [1] * (C + 1))], errors.PromptTooLongError),
]
REFUSED_DECODES: list[tuple[list[DecodeRow], Any]] = [
    ([], errors.LiveSlotOmittedError),
    ([DecodeRow(1, 1, 3)], errors.LiveSlotOmittedError),
    ([DecodeRow(1, 1, 3), DecodeRow(0, 1, 0)], errors.LiveSlotOmittedError),
    ([DecodeRow(1, 1, 2), DecodeRow(2, 1, 4)], errors.PositionMismatchError),
    ([DecodeRow(1, 1, 4), DecodeRow(2, 1, 4)], errors.PositionMismatchError),
    ([DecodeRow(1, 1, 0), DecodeRow(2, 1, 4)], errors.PositionMismatchError),
    ([DecodeRow(1, 1, -1), DecodeRow(2, 1, 4)], errors.PositionMismatchError),
    ([DecodeRow(1, 1, T), DecodeRow(2, 1, 4)], errors.PositionOverflowError),
    ([DecodeRow(1, 1, 3), DecodeRow(2, 1, 4), DecodeRow(0, 1, 1)], errors.SlotNotLiveError),
    ([DecodeRow(1, 1, 3), DecodeRow(2, 1, 4), DecodeRow(1, 1, 3)], errors.SlotDuplicateError),
    ([DecodeRow(1, 1, 3), DecodeRow(2, 1, 4), DecodeRow(B, 1, 0)], errors.SlotOutOfRangeError),
    ([DecodeRow(1, 1, 3), DecodeRow(2, 1, 4), DecodeRow(-1, 1, 0)], errors.SlotOutOfRangeError),
    ([DecodeRow(1, V, 3), DecodeRow(2, 1, 4)], errors.TokenOutOfRangeError),
    ([DecodeRow(1, 1, 3), DecodeRow(2, -1, 4)], errors.TokenOutOfRangeError),
    ([DecodeRow(1, 1, 3), DecodeRow(2, 1, 4), *[DecodeRow(0, 1, 0)] * (B - 1)], TOO_MANY),
]
REFUSED_RELEASES: list[tuple[list[int], Any]] = [
    ([0], errors.SlotNotLiveError),
    ([1, 0], errors.SlotNotLiveError),
    ([1, 1], errors.SlotDuplicateError),
    ([B], errors.SlotOutOfRangeError),
    ([-1], errors.SlotOutOfRangeError),
]


def _refused(call: Any, rows: Any, error: Any) -> None:
    with pytest.raises(error) as caught:
        call(rows)
    assert isinstance(caught.value, errors.BackendError)
    assert len(str(caught.value)) > 10


def _ids(value: object) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize(("rows", "error"), REFUSED_PREFILLS, ids=_ids)
def test_refused_prefills_change_nothing(twins: Twins, rows: Any, error: Any) -> None:
    _refused(twins.first.backend.prefill, rows, error)


@pytest.mark.only(mode="insert")
@pytest.mark.parametrize(("rows", "error"), REFUSED_INSERTS, ids=_ids)
def test_an_insert_is_refused_for_live_slots_single_tokens_and_long_prompts(
    twins: Twins, rows: Any, error: Any
) -> None:
    _refused(twins.first.backend.prefill, rows, error)


@pytest.mark.case(181, deviation=NO_SHARD_RPC)
@pytest.mark.parametrize(("rows", "error"), REFUSED_DECODES, ids=_ids)
def test_refused_decodes_change_nothing(twins: Twins, rows: Any, error: Any) -> None:
    _refused(twins.first.backend.decode, rows, error)


@pytest.mark.parametrize(("slots", "error"), REFUSED_RELEASES, ids=_ids)
def test_refused_releases_change_nothing(twins: Twins, slots: Any, error: Any) -> None:
    _refused(twins.first.backend.release, slots, error)


def test_a_closed_backend_refuses_everything(backend: Backend) -> None:
    backend.prefill([PrefillRow(0, [1, 2])])
    backend.close()
    backend.close()
    for call in (
        lambda: backend.prefill([PrefillRow(1, [1, 2])]),
        lambda: backend.decode([DecodeRow(0, 1, 2)]),
        lambda: backend.release([0]),
    ):
        with pytest.raises(errors.DeviceFailedError):
            call()
