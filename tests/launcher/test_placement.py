from __future__ import annotations

import pytest
from planning import planned

from launcher.backend_choice import Execution
from launcher.device.cores import CoreRange
from launcher.device.inventory import Inventory
from launcher.host import Host
from launcher.parameters import Given, Parameters, Source
from launcher.placement import places, replicas, sockets
from neuron_server.errors import ConfigError


def on(backend: str, degree: int = 1) -> Execution:
    return Execution(backend, "float32", "insert", Given(degree, Source.MODEL, "num_shard"))


# -- cores and threads ---------------------------------------------------------------------------------------


@pytest.mark.group(23)
def test_a_range_that_the_launcher_was_given_is_sliced():
    host = Host(inventory=Inventory(devices=12, cores=CoreRange(8, 16)))
    made = places(on("neuron", 8), 2, host)
    assert [str(own) for own in made.cores] == ["8-15", "16-23"]
    assert [own["NEURON_RT_VISIBLE_CORES"] for own in made.environments] == ["8-15", "16-23"]
    assert made.threads is None


@pytest.mark.group(23)
def test_no_device_and_too_few_cores_are_refused():
    for host, rule in (
        (Host(), "no_neuron_device"),
        (Host(inventory=Inventory(devices=1, cores=CoreRange(0, 2))), "neuron_cores"),
    ):
        with pytest.raises(ConfigError) as caught:
            places(on("neuron_legacy", 2), 2, host)
        assert caught.value.rule == rule


@pytest.mark.parametrize(
    ("count", "processors", "threads"),
    [(1, 8, None), (2, 8, 4), (3, 8, 2), (2, 2, 1), (4, 2, 1), (2, None, None)],
)
def test_replicas_on_the_processor_share_its_cores(count, processors, threads):
    made = places(on("cpu"), count, Host(processors=processors))
    assert (made.cores, made.threads) == ((), threads)
    assert made.environments == ({},) * count
    assert bool(made.warnings) == (processors is not None and count > processors)


def test_the_share_reaches_the_generators():
    plan = planned(data_parallel_size=2, host=Host(processors=8))
    assert [g.threads for g in plan.generators] == [4, 4]


def test_replicas_are_counted():
    assert replicas(Parameters.of()) == 1
    assert replicas(Parameters.of(data_parallel_size=24)) == 24


# -- sockets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "paths", "directory"),
    [
        ({}, ("/p/shard-0", "/p/shard-1", "/p/shard-2"), "/p"),
        ({"shard_uds_path": "/run/t"}, ("/run/t-0", "/run/t-1", "/run/t-2"), None),
        ({"master_shard_uds_path": "/run/m"}, ("/run/m", "/p/shard-1", "/p/shard-2"), "/p"),
        (
            {"shard_uds_path": "/run/t", "master_shard_uds_path": "/run/m"},
            ("/run/m", "/run/t-1", "/run/t-2"),
            None,
        ),
    ],
)
def test_the_rank_is_added_to_the_base_and_the_master_is_rank_0(values, paths, directory):
    made = sockets(Parameters.of(**values), 3, "/p")
    assert (made.paths, made.directory) == (paths, directory)
    first = "--master-shard-uds-path" if "master_shard_uds_path" in values else "--shard-uds-path"
    assert made.flags == (first, "--shard-uds-path", "--shard-uds-path")


def test_one_path_for_two_ranks_is_refused():
    parameters = Parameters.of(shard_uds_path="/run/t", master_shard_uds_path="/run/t-1")
    assert sockets(parameters, 1, "/p").paths == ("/run/t-1",)
    with pytest.raises(ConfigError, match="socket of rank 1 too") as caught:
        sockets(parameters, 2, "/p")
    assert caught.value.rule == "socket"


def test_a_path_that_is_too_long_only_for_a_later_rank_is_refused():
    parameters = Parameters.of(shard_uds_path="/" + "a" * 104)
    assert len(sockets(parameters, 10, "/p").paths) == 10
    with pytest.raises(ConfigError, match="107"):
        sockets(parameters, 11, "/p")
