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
