import pytest
from conformance import NO_SHARD_RPC

from neuron_server.engine.schedule import Occupancy, Policy, admit, may_prefill


def joins(
    lengths: list[int],
    *,
    running: int = 0,
    free: int = 16,
    steps: int = 0,
    mode: str = "insert",
    prefill: int = 4096,
    ratio: float = 0.3,
    waiting: int = 20,
) -> int:
    policy = Policy(prefill, ratio, waiting, 1.0)
    return admit(policy, mode, lengths, Occupancy(running, free, len(lengths), steps))


@pytest.mark.parametrize("mode", ["insert", "rebuild"])
@pytest.mark.parametrize(
    ("lengths", "options", "expected"),
    [
        ([], {}, 0),
        ([10], {}, 1),
        ([10] * 5, {"free": 3}, 3),
        ([10] * 5, {"free": 0, "running": 4}, 0),
        # W: floor(running x 0.3) must wait, TGI's table
        ([10], {"running": 3}, 1),
        ([10], {"running": 4}, 1),
        ([10], {"running": 6}, 1),
        ([10], {"running": 7}, 0),
        ([10, 10], {"running": 9}, 2),
        ([10, 10], {"running": 10}, 0),
        ([10], {"running": 8, "ratio": 1.2}, 0),
        ([10] * 9, {"running": 8, "ratio": 1.2}, 9),
        ([10], {"running": 15, "ratio": 0.0}, 1),
        # T: no minimum once enough steps have passed since the last join
        ([10], {"running": 10, "steps": 18}, 0),
        ([10], {"running": 10, "steps": 19}, 1),
        ([10], {"running": 10, "steps": 0, "waiting": 1}, 1),
        ([10], {"running": 10, "steps": 0, "waiting": 0}, 1),
        # not TGI: a minimum beyond the free slots makes no sense on a static batch
        ([10], {"running": 15, "free": 1}, 1),
        ([10], {"running": 14, "free": 2}, 0),
        # P: (n + 1) x longest
        ([100] * 5, {"prefill": 300}, 3),
        ([100] * 5, {"prefill": 299}, 2),
        ([10, 10, 200, 10], {"prefill": 399}, 2),
        ([10, 10, 200, 10], {"prefill": 600}, 3),
        ([500, 10], {"prefill": 300}, 1),
        # FIFO: the head blocks the rest, however short
        ([300, 400, 2, 2], {"prefill": 700}, 1),
        # nothing runs: no minimum
        ([10], {"ratio": 5.0}, 1),
    ],
)
def test_admission(mode: str, lengths: list[int], options: dict[str, float], expected: int) -> None:
    assert joins(lengths, mode=mode, **options) == expected


def test_one_token_prompts_are_free_where_they_join_a_decode() -> None:
    assert joins([1], running=10) == 1
    assert joins([1, 1, 10, 1], running=14, free=2, ratio=1.0) == 2
    assert joins([1, 1, 10, 1], running=10, ratio=2.0) == 2
    assert joins([1, 300, 1, 1], prefill=300) == 4
    assert joins([1], running=10, mode="rebuild") == 0
    assert joins([1, 300, 1, 1], prefill=300, mode="rebuild") == 1


def test_with_nothing_running_the_queue_always_moves() -> None:
    for length in (1, 2, 100, 10**6):
        for prefill in (0, 1, 4096):
            for free in (1, 16):
                assert joins([length] * 20, free=free, prefill=prefill, ratio=9.0) >= 1


def test_the_stall_bound_lets_the_first_prefill_through() -> None:
    policy = Policy(max_prefill_stall_s=0.5)
    assert may_prefill(policy, 0.0)
    assert may_prefill(policy, 0.49)
    assert not may_prefill(policy, 0.5)
    assert may_prefill(Policy(max_prefill_stall_s=0.0), 0.0)
    assert not may_prefill(Policy(max_prefill_stall_s=0.0), 0.001)


# -- TGI's own examples --------------------------------------------------------------------------------------


@pytest.mark.case(171)
@pytest.mark.parametrize("mode", ["insert", "rebuild"])
def test_padded_prompts_cost_the_longest_of_them_each(mode: str) -> None:
    assert joins([4, 4, 4], prefill=10, mode=mode) == 2
    assert joins([4, 4, 4], prefill=12, mode=mode) == 3


@pytest.mark.case(172)
@pytest.mark.parametrize("mode", ["insert", "rebuild"])
def test_a_long_prompt_behind_a_short_one_waits_if_both_padded_are_too_much(mode: str) -> None:
    assert joins([2, 6], prefill=10, mode=mode) == 1
    assert joins([2, 6], prefill=12, mode=mode) == 2


@pytest.mark.case(173)
@pytest.mark.parametrize("mode", ["insert", "rebuild"])
def test_four_that_run_want_one_in_company_or_four(mode: str) -> None:
    assert joins([10], running=4, ratio=0.3, mode=mode) == 1
    assert [joins([10], running=4, ratio=1.2, steps=n, mode=mode) for n in (0, 18, 19)] == [0, 0, 1]
    assert joins([10] * 4, running=4, ratio=1.2, mode=mode) == 4


@pytest.mark.case(174)
@pytest.mark.parametrize("mode", ["insert", "rebuild"])
def test_a_full_batch_takes_nobody_however_long_they_waited(mode: str) -> None:
    assert joins([10] * 3, running=4, free=0, steps=99, mode=mode) == 0


@pytest.mark.case(170, deviation=NO_SHARD_RPC)
def test_tgis_table_of_its_queue_as_far_as_it_is_about_who_joins() -> None:
    """Its minimum is the company that running requests want, its maximum the free slots.

    Its token budgets are one here, that of prefills: every slot has its T tokens from the start.
    """
    assert joins([]) == joins([], running=4) == 0
    assert joins([2, 2], prefill=4) == 2
    assert joins([2], running=7) == 0  # two are wanted
    assert joins([2, 2], running=7) == 2
    assert joins([2, 2], free=1) == 1
    assert joins([2, 2], prefill=2) == 1
    assert joins([2, 2], prefill=6) == 2
    assert joins([2], prefill=0) == 1  # TGI: never, and nothing behind it either
