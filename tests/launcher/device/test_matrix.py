from __future__ import annotations

import dataclasses

import pytest
from device import machines

from launcher.device.matrix import PINS, Misfit, misfits, pins_of
from launcher.device.stack import Stack, installed

GOOD = Stack(
    optimum_neuron="0.4.5",
    compiler="2.21.33363.0+82129205",
    torch_neuronx="2.8.0.2.10.16998+e9bf8a50",
    torch="2.8.0+cpu",
    neuronx_distributed="0.15.22404+1f27bddf",
    libneuronxla="2.2.12677.0+87c23c29",
)


def test_the_pinned_packages_fit_with_or_without_the_name_of_their_build(tmp_path):
    assert misfits(GOOD) == ()
    assert misfits(installed(machines.inf2_xlarge(tmp_path))) == ()


@pytest.mark.parametrize(
    ("version", "row"),
    [
        ("0.0.28", "0.0.28"),
        ("0.1.0", "0.1.0"),
        ("0.2.2", "0.2.0"),
        ("0.3.0", "0.3.0"),
        ("0.4.2", "0.4.0"),
        ("0.4.5", "0.4.3"),
        ("0.4.6.dev4", "0.4.3"),
    ],
)
def test_a_release_has_its_row(version, row):
    assert pins_of(version).optimum_neuron == row


@pytest.mark.parametrize("version", [None, "", "unknown", "0.0.11", "0.5.0", "0.4.7", "9"])
def test_a_release_that_the_table_does_not_know_fits_nothing_and_misfits_nothing(version):
    assert pins_of(version) is None
    assert misfits(dataclasses.replace(GOOD, optimum_neuron=version)) == ()


def test_a_missing_package_is_grave():
    stack = dataclasses.replace(GOOD, compiler=None)
    assert misfits(stack) == (Misfit("neuronx-cc", None, "2.21.33363.0", grave=True),)


def test_another_minor_version_is_grave_and_another_build_is_not():
    (newer,) = misfits(dataclasses.replace(GOOD, compiler="2.23.6484.0"))
    (near,) = misfits(dataclasses.replace(GOOD, compiler="2.21.18209.0"))
    assert (newer.grave, near.grave) == (True, False)


def test_the_legacy_generation_needs_its_own_packages():
    legacy = Stack(optimum_neuron="0.0.28", compiler="2.15.143.0")
    missing = [misfit.package for misfit in misfits(legacy)]
    assert "transformers-neuronx" in missing
    assert "neuronx-cc" not in missing
    assert "transformers-neuronx" not in [m.package for m in misfits(Stack(optimum_neuron="0.4.5"))]


def test_the_table_is_in_order():
    assert [row.optimum_neuron for row in PINS] == sorted(row.optimum_neuron for row in PINS)
