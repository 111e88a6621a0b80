"""A small model computes on one thread unless the user says otherwise."""

from __future__ import annotations

import pytest
import torch

from neuron_server.backends.threads import SMALL_MODEL_BYTES, use_threads_for


@pytest.fixture
def chosen(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    return threads


def test_a_small_model_gets_one_thread(chosen):
    use_threads_for(SMALL_MODEL_BYTES - 1)
    assert chosen == [1]


def test_a_large_model_keeps_torchs_choice(chosen):
    use_threads_for(SMALL_MODEL_BYTES)
    assert chosen == []


def test_the_environment_overrules(chosen, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    use_threads_for(1)
    assert chosen == []


@pytest.mark.parametrize(("most", "threads"), [(2, [2]), (4, []), (9, []), (None, [])])
def test_a_replica_takes_no_more_than_its_share(chosen, monkeypatch, most, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    use_threads_for(SMALL_MODEL_BYTES, most)
    assert chosen == threads
    use_threads_for(1, most)
    assert chosen == [*threads, 1]
