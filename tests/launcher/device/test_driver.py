from __future__ import annotations

import pytest

from launcher.device.driver import RELEASES, check, doubt, mismatch, release_of, require
from launcher.device.versions import numbers
from neuron_server.errors import ConfigError

pytestmark = pytest.mark.group(24)


@pytest.mark.parametrize("release", RELEASES, ids=lambda r: r.sdk)
def test_what_was_shipped_together_goes_together(release):
    assert check(release.driver, release.runtime) is None
    assert doubt(release.driver, release.runtime) is None


@pytest.mark.parametrize("driver", ["2.29", "2.29.0.0", "2.29.1.0", "2.30.2", "3.0.1", "2.29.5-dirty"])
@pytest.mark.parametrize("runtime", ["2.16.14.0", "2.26.42.0-2ff3b5c7d", "2.28.23.0", "2.30.51", "2.32.1"])
def test_a_driver_of_2_29_or_later_needs_a_runtime_of_2_33(driver, runtime):
    assert "need a runtime of at least 2.33" in (check(driver, runtime) or "")


def test_the_remedy_is_the_driver_of_the_sdk_that_the_runtime_is_of():
    text = check("2.29.1.0", "2.28.23.0") or ""
    assert "driver is 2.29.1.0 and the runtime library here is 2.28.23.0" in text
    assert "aws-neuronx-dkms=2.24.7.0" in text
    assert "driver of SDK 2.26.1" in text
    assert "runtime of SDK 2.31 or later would do too" in text
    assert "aws-neuronx-dkms=2.22.2.0" in (check("2.30.2", "2.26.43.1") or "")
    assert "a driver below 2.29 (aws-neuronx-dkms)" in (check("2.30.2", "2.27.1") or "")


@pytest.mark.parametrize("runtime", ["2.33", "2.33.1.0", "2.34.10", "3.0.0"])
def test_a_new_runtime_takes_a_new_driver(runtime):
    assert check("2.29.1.0", runtime) is None


@pytest.mark.parametrize("driver", ["2.18.20.0", "2.26.10", "2.26.99.9"])
def test_runtime_2_32_refuses_drivers_up_to_2_26(driver):
    assert "does not work with drivers up to 2.26" in (check(driver, "2.32.10.0") or "")
    assert check("2.27.1", "2.32.10.0") is None


@pytest.mark.parametrize("driver", ["2.24.7.0", "2.25.1", "2.26.10", "2.28.99"])
def test_runtime_2_28_takes_drivers_from_its_own_up_to_2_28(driver):
    assert (check(driver, "2.28.23.0"), doubt(driver, "2.28.23.0")) == (None, None)


def test_a_driver_older_than_its_runtimes_is_doubted_not_refused():
    assert check("2.22.2.0", "2.28.23.0") is None
    found = doubt("2.22.2.0", "2.28.23.0")
    assert found is not None
    assert "older than 2.24.7.0" in found.found
    assert "aws-neuronx-dkms=2.24.7.0" in found.fix


def test_what_is_refused_is_not_doubted_as_well():
    assert mismatch("2.20.1.0", "2.32.1.0") is not None
    assert doubt("2.20.1.0", "2.32.1.0") is None


@pytest.mark.parametrize("version", [None, "", "unknown", "2", "2.x.30.0", "\x00", "v", "..", "-1.2"])
def test_a_version_that_is_unknown_speaks_against_nothing(version):
    assert check(version, "2.28.23.0") is None
    assert check("2.29.1.0", version) is None
    assert doubt(version, "2.28.23.0") is None
    assert doubt("2.29.1.0", version) is None


def test_the_raising_form_has_the_rule_of_the_exit_status():
    require("2.24.7.0", "2.28.23.0")
    require(None, None)
    with pytest.raises(ConfigError, match=r"2\.29") as caught:
        require("2.29.1.0", "2.28.23.0")
    assert caught.value.rule == "neuron_driver"


def test_a_runtime_belongs_to_the_release_of_its_minor_version():
    assert release_of("2.28.99.1-abc").sdk == "2.26.1"
    assert release_of("2.27.0") is None
    assert release_of(None) is None


@pytest.mark.parametrize(
    ("version", "parts"),
    [
        ("2.28.23.0-dd5879008", (2, 28, 23, 0)),
        ("v2.29", (2, 29)),
        (" 2.8.0.2.10.16998+b2a", (2, 8, 0, 2, 10, 16998)),
        ("2.x", (2,)),
        ("", ()),
        (None, ()),
        ("abc", ()),
        ("9" * 5000, ()),
    ],
)
def test_versions_are_read_as_far_as_they_are_numbers(version, parts):
    assert numbers(version)[:6] == parts or not parts
