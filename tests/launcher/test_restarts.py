from __future__ import annotations

import math

from launcher.restarts import RESTART_WINDOW_S, Restarts


def test_restarts_are_free_until_they_are_used_up_and_old_ones_are_forgotten():
    restarts = Restarts(2)
    assert [restarts.wait_s(0.0), restarts.note(0.0)] == [0.0, 1]
    assert [restarts.wait_s(10.0), restarts.note(10.0)] == [0.0, 2]
    assert restarts.wait_s(20.0) == RESTART_WINDOW_S - 20
    assert restarts.wait_s(RESTART_WINDOW_S) == 0.0
    assert restarts.note(RESTART_WINDOW_S) == 2  # the one of 10 s is still remembered
    assert restarts.wait_s(RESTART_WINDOW_S + 1) == 9.0


def test_none_at_all_is_never():
    assert Restarts(0).wait_s(0.0) == math.inf
