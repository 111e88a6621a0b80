from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from conformance import OWN_EXIT_STATUS, RESTARTED
from planning import compiled, machine, planned, runs

from launcher.exit_codes import LaunchError
from launcher.parameters import Value
from launcher.stopping import Stopping
from launcher.supervisor import Programs, Supervisor
from neuron_server.errors import ConfigError


class Scene:
    """One supervisor over the stand-ins."""

    def __init__(
        self, programs: Programs, env: dict[str, str], tmp_path: Path, values: dict[str, Value]
    ) -> None:
        self.directory = tmp_path / "private"
        self.lines: list[bytes] = []
        self.env = env
        self.stopping = Stopping()
        model = values.pop("model", None)
        plan = planned(
            model,
            host=machine(),
            directory=str(self.directory),
            **{"hostname": "127.0.0.1", "port": 0, "backend": "cpu", **values},
        )
        self.run = asyncio.create_task(
            Supervisor(plan, env, lambda _, line: self.lines.append(line), self.stopping, programs).run()
        )

    @property
    def generators(self) -> list[int]:
        """The process ids of all generators started, in order."""
        path = Path(self.env["COUNT_FILE"])
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def generators_of(self, rank: int) -> list[int]:
        """The same of one rank."""
        path = Path(f"{self.env['COUNT_FILE']}.{rank}")
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    @property
    def output(self) -> str:
        return b"".join(self.lines).decode()

    def assert_nothing_is_left(self) -> None:
        assert not self.directory.exists()
        assert not any(runs(pid) for pid in self.generators)
        routers = [int(line.split()[1]) for line in self.lines if line.startswith(b"router ")]
        assert not any(runs(pid) for pid in routers if pid)


@pytest.fixture
def scene(programs: Programs, env: dict[str, str], tmp_path: Path):
    """Makes a scene; whatever happens in it, it is over at the end."""

    @asynccontextmanager
    async def make(variables: dict[str, str] | None = None, **values: Value) -> AsyncIterator[Scene]:
        made = Scene(programs, {**env, **(variables or {})}, tmp_path, values)
        try:
            yield made
        finally:
            made.stopping.requested.set()
            made.stopping.hurried.set()
            await asyncio.gather(made.run, return_exceptions=True)

    return make


def place(lines: list[str], text: str) -> int:
    """The index of the first line with ``text``."""
    return next(i for i, line in enumerate(lines) if text in line)


@pytest.mark.case(190)
async def test_router_first_then_ready_then_stopped_in_order_with_nothing_left(scene, heard):
    async with scene() as made:
        await heard.until("^Ready: ")
        made.stopping.ask("SIGTERM")
        await made.run
        made.assert_nothing_is_left()
        assert "draining" in made.output
    order = [
        *(
            "Starting Webserver",
            "Starting shard",
            "Shard ready in",
            "Ready: org/model on http://127.0.0.1:",
        ),
        *("SIGTERM received", "Terminating webserver", "webserver terminated", "Shutting down shards"),
        *("Terminating shard", "shard terminated"),
    ]
    places = [place(heard.lines, text) for text in order]
    assert places == sorted(places)


async def test_the_welcome_has_a_curl_to_paste(scene, heard):
    async with scene(api_key="hush"):
        await heard.until("^Ready: ")
    welcome = heard.lines[place(heard.lines, "Ready: ")]
    assert "(4 slots of 2048 tokens)" in welcome
    assert "\n    curl -N http://127.0.0.1:" in welcome
    assert "Authorization: Bearer" in welcome
    assert "hush" not in heard.text


async def test_waiting_says_the_phase_once(scene, heard, tmp_path):
    os.mkfifo(tmp_path / "gate")
    async with scene({"GENERATOR": "late", "GATE": str(tmp_path / "gate")}):
        await heard.until(r"Waiting for shard to be ready\.\.\. \(loading\)")
        await asyncio.to_thread((tmp_path / "gate").write_text, "go")
        await heard.until("^Ready: ")
    assert heard.text.count("to be ready...") == 1


async def test_the_key_travels_in_the_environment(scene, heard):
    async with scene(api_key="hush") as made:
        await heard.until("^Ready: ")
        assert "key hush" in made.output


# -- what cannot start ---------------------------------------------------------------------------------------


@pytest.mark.case(188, deviation=OWN_EXIT_STATUS)
@pytest.mark.parametrize(
    ("status", "rule"), [(3, "model"), (4, "device_failed"), (2, "generator_start"), (1, "generator_start")]
)
async def test_a_generator_that_ends_before_it_was_ready_ends_everything(scene, heard, status, rule):
    async with scene({"GENERATOR": f"exit{status}"}) as made:
        with pytest.raises(LaunchError) as caught:
            await made.run
        made.assert_nothing_is_left()
        assert len(made.generators) == 1
    assert (caught.value.rule, caught.value.kind) == (rule, "ShardCannotStart")
    assert f"Shard 0 failed to start: it exited with status {status}" in heard.lines
    line = heard.lines[place(heard.lines, "Shard complete standard error output:")]
    assert "the last words of the generator" in line


@pytest.mark.parametrize(
    ("status", "rule"), [(1, "router_failed"), (3, "model"), (6, "port_in_use"), (0, "router_failed")]
)
async def test_a_router_that_ends_ends_everything(scene, heard, status, rule):
    async with scene({"ROUTER": f"exit{status}"}) as made:
        with pytest.raises(LaunchError) as caught:
            await made.run
        made.assert_nothing_is_left()
    assert (caught.value.rule, caught.value.kind) == (rule, "WebserverFailed")
    assert "the last words of the router" in heard.lines[place(heard.lines, "Webserver Crashed")]


async def test_a_taken_port_stops_it_before_anything_starts(scene, heard):
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with scene(port=server.getsockname()[1]) as made:
            with pytest.raises(ConfigError) as caught:
                await made.run
            assert caught.value.rule == "port_in_use"
            assert not made.directory.exists()
            assert made.generators == []
    assert heard.lines == []


async def test_a_failure_in_the_middle_of_starting_stops_what_runs(scene, env, tmp_path, programs, heard):
    broken = Programs(("/no/such/program",), programs.router)
    plan = planned(directory=str(tmp_path / "private"), hostname="127.0.0.1", port=0)
    with pytest.raises(FileNotFoundError):
        await Supervisor(plan, env, lambda *_: None, Stopping(), broken).run()
    assert not (tmp_path / "private").exists()
    assert "webserver terminated" in heard.text


# -- what happens later --------------------------------------------------------------------------------------


@pytest.mark.case(189, deviation=RESTARTED)
async def test_a_generator_that_dies_is_reported_and_restarted(scene, heard):
    async with scene() as made:
        await heard.until("^Ready: ")
        os.kill(made.generators[0], signal.SIGKILL)
        await heard.until("Shard ready in", times=2)
        made.stopping.ask("SIGINT")
        await made.run
        assert len(made.generators) == 2
        made.assert_nothing_is_left()
    assert "was killed by signal 9 (SIGKILL)" in heard.lines[place(heard.lines, "Shard 0 crashed")]
    assert "listens" in heard.lines[place(heard.lines, "Shard complete standard error output:")]
    assert "Shard process was signaled to shutdown with signal 9" in heard.lines
    assert "Restarting shard 0 (1 of --max-restarts 3)" in heard.text
    assert heard.text.count("Ready: ") == 1


async def test_a_generator_that_dies_too_often_ends_everything(scene, heard):
    async with scene({"GENERATOR": "serve,exit4"}, max_restarts=2) as made:
        await heard.until("^Ready: ")
        os.kill(made.generators[0], signal.SIGKILL)
        with pytest.raises(LaunchError, match="--max-restarts 2 are used up") as caught:
            await made.run
        assert len(made.generators) == 3
        made.assert_nothing_is_left()
    assert (caught.value.rule, caught.value.kind) == ("generator_lost", "ShardFailed")
    assert heard.text.count("Shard 0 crashed") == 3


@pytest.mark.case(189)
async def test_without_restarts_the_first_crash_is_the_end_as_in_tgi(scene, heard):
    async with scene(max_restarts=0) as made:
        await heard.until("^Ready: ")
        os.kill(made.generators[0], signal.SIGKILL)
        with pytest.raises(LaunchError):
            await made.run
        assert len(made.generators) == 1
    assert "Terminating webserver" in heard.text


async def test_huge_lines_of_a_child_do_not_stop_anything(scene, heard):
    async with scene({"GENERATOR": "huge"}) as made:
        await heard.until("^Ready: ")
        assert "after the huge line" in made.output
        assert made.output.count("x") >= 3_000_000


# -- replicas ------------------------------------------------------------------------------------------------


async def test_all_replicas_start_and_one_that_is_ready_is_enough(scene, heard, tmp_path):
    os.mkfifo(tmp_path / "gate")
    late = {"GENERATOR_1": "late", "GATE": str(tmp_path / "gate")}
    async with scene(late, data_parallel_size=2) as made:
        await heard.until(r"^Ready: .*\(2 replicas, each 4 slots of 2048 tokens\)")
        assert heard.text.count("Starting shard") == 2
        assert heard.text.count("Shard ready in") == 1
        await asyncio.to_thread((tmp_path / "gate").write_text, "go")
        await heard.until("Shard ready in", times=2)
        made.stopping.ask("SIGTERM")
        await made.run
        made.assert_nothing_is_left()
    assert heard.text.count("Ready: ") == 1
    assert heard.text.count("shard terminated") == 2


async def test_one_dead_replica_is_restarted_and_the_others_are_left_alone(scene, heard):
    async with scene(data_parallel_size=3) as made:
        await heard.until("Shard ready in", times=3)
        os.kill(made.generators_of(1)[0], signal.SIGKILL)
        await heard.until("Shard ready in", times=4)
        assert [len(made.generators_of(rank)) for rank in range(3)] == [1, 2, 1]
        assert all(runs(made.generators_of(rank)[0]) for rank in (0, 2))
    assert "Restarting shard 1 (1 of --max-restarts 3)" in heard.text


async def test_a_replica_that_never_was_ready_ends_everything_though_another_serves(scene, heard, tmp_path):
    os.mkfifo(tmp_path / "gate")
    late = {"GENERATOR_1": "late", "GATE": str(tmp_path / "gate")}
    async with scene(late, data_parallel_size=2) as made:
        await heard.until("^Ready: ")
        os.kill(made.generators_of(1)[0], signal.SIGKILL)
        with pytest.raises(LaunchError, match="shard 1 was killed by signal 9") as caught:
            await made.run
        made.assert_nothing_is_left()
    assert (caught.value.rule, caught.value.kind) == ("generator_start", "ShardCannotStart")


async def test_a_replica_whose_restarts_are_used_up_leaves_the_service_to_the_others(scene, heard):
    async with scene({"GENERATOR_0": "serve,exit4"}, data_parallel_size=2, max_restarts=2) as made:
        await heard.until("Shard ready in", times=2)
        os.kill(made.generators_of(0)[0], signal.SIGKILL)
        await heard.until(
            r"Shard 0 is down: --max-restarts 2 are used up\. The others serve .* again in (299|300) s"
        )
        assert len(made.generators_of(0)) == 3
        assert not made.run.done()
        os.kill(made.generators_of(1)[0], signal.SIGKILL)  # its own restarts are all there
        await heard.until(r"Restarting shard 1 \(1 of --max-restarts 2\)")
        await heard.until("Shard ready in", times=3)
        assert len(made.generators_of(0)) == 3


async def test_a_replica_that_is_down_is_tried_again_later(scene, heard, monkeypatch):
    monkeypatch.setattr("launcher.restarts.RESTART_WINDOW_S", 1.0)
    async with scene({"GENERATOR_0": "serve,exit4,serve"}, data_parallel_size=2, max_restarts=1) as made:
        await heard.until("Shard ready in", times=2)
        os.kill(made.generators_of(0)[0], signal.SIGKILL)
        await heard.until("Shard 0 is down")
        await heard.until("Shard ready in", times=3)
        assert len(made.generators_of(0)) == 3


async def test_the_launcher_gives_up_when_no_replica_is_left(scene, heard):
    async with scene(data_parallel_size=2, max_restarts=0) as made:
        await heard.until("Shard ready in", times=2)
        os.kill(made.generators_of(1)[0], signal.SIGKILL)
        await heard.until(r"Shard 1 is down: .*The others serve without it$")
        os.kill(made.generators_of(0)[0], signal.SIGKILL)
        with pytest.raises(LaunchError, match=r"shard 0 .* --max-restarts 0 are used up") as caught:
            await made.run
        made.assert_nothing_is_left()
    assert (caught.value.rule, caught.value.kind) == ("generator_lost", "ShardFailed")
    assert place(heard.lines, "Shard 1 crashed") < place(heard.lines, "Shard 0 crashed")


async def test_replicas_that_die_together_are_all_restarted(scene, heard):
    async with scene(data_parallel_size=2, max_restarts=1) as made:
        await heard.until("Shard ready in", times=2)
        for rank in range(2):
            os.kill(made.generators_of(rank)[0], signal.SIGKILL)
        await heard.until("Shard ready in", times=4)
        assert [len(made.generators_of(rank)) for rank in range(2)] == [2, 2]


async def test_a_living_generator_that_the_router_has_lost_is_killed_and_restarted(scene, heard, monkeypatch):
    monkeypatch.setattr("launcher.readiness._LOOK_S", 0.02)
    async with scene(data_parallel_size=2) as made:
        await heard.until("Shard ready in", times=2)
        lost = made.env["COUNT_FILE"] + ".lost.1"
        os.close(os.open(lost, os.O_CREAT))
        await heard.until(r"Shard 1 runs, but the router has lost it \(lost\): killing it")
        os.unlink(lost)
        await heard.until("Shard ready in", times=3)
        assert not runs(made.generators_of(1)[0])
        assert [len(made.generators_of(rank)) for rank in range(2)] == [1, 2]


async def test_the_cores_of_a_replica_reach_it_and_no_number_of_cores_beside_them(scene, heard):
    number = {"NEURON_RT_NUM_CORES": "8", "NEURON_RT_VISIBLE_CORES": "0-7"}
    values = {"model": compiled(cores=4), "backend": "neuron", "data_parallel_size": 2}
    async with scene(number, **values) as made:
        await heard.until("Shard ready in", times=2)
        assert made.output.count("its cores 0-3 None") == 1
        assert made.output.count("its cores 4-7 None") == 1


# -- stopping ------------------------------------------------------------------------------------------------


@pytest.mark.case(191)
async def test_a_router_that_does_not_end_is_killed_after_its_time(scene, heard, monkeypatch):
    monkeypatch.setattr("launcher.supervisor._ROUTER_MARGIN_S", 0.05)
    async with scene({"ROUTER": "stubborn"}, graceful_termination_timeout=0) as made:
        await heard.until("^Ready: ")
        made.stopping.ask("SIGTERM")
        await made.run
        made.assert_nothing_is_left()
    assert place(heard.lines, "webserver killed") < place(heard.lines, "Terminating shard")


async def test_a_generator_that_dies_while_the_router_drains_is_restarted(scene, heard, monkeypatch):
    monkeypatch.setattr("launcher.supervisor._SETTLE_S", 0.05)
    async with scene({"ROUTER": "busy"}) as made:
        await heard.until("^Ready: ")
        made.stopping.ask("SIGTERM")
        await heard.until("Waiting for webserver to gracefully shutdown")
        os.kill(made.generators[0], signal.SIGKILL)
        await made.run  # the router ends only once there is another generator
        assert len(made.generators) == 2
        made.assert_nothing_is_left()
    assert place(heard.lines, "Restarting shard 0") < place(heard.lines, "webserver terminated")


async def test_a_generator_that_ends_with_the_router_is_not_restarted(scene, heard):
    """As under systemd, which signals every process of a service."""
    async with scene() as made:
        await heard.until("^Ready: ")
        os.kill(made.generators[0], signal.SIGTERM)
        made.stopping.ask("SIGTERM")
        await made.run
        assert len(made.generators) == 1
    assert "crashed" not in heard.text


async def test_a_second_signal_kills_at_once(scene, heard):
    async with scene({"ROUTER": "stubborn", "GENERATOR": "stubborn"}) as made:
        await heard.until("^Ready: ")
        made.stopping.ask("SIGINT")
        await heard.until("Waiting for webserver to gracefully shutdown")
        made.stopping.ask("SIGINT")
        await made.run
        made.assert_nothing_is_left()
    assert "webserver killed" in heard.text
    assert "shard killed" in heard.text


async def test_stopping_while_loading_is_an_orderly_stop(scene, heard):
    async with scene() as made:
        await heard.until("Starting shard")
        made.stopping.ask("SIGTERM")
        await made.run
        assert not made.directory.exists()


async def test_placed_sockets_are_removed_at_the_end(scene, heard, tmp_path):
    async with scene(shard_uds_path=str(tmp_path / "s")) as made:
        await heard.until("^Ready: ")
        assert (tmp_path / "s-0").is_socket()
        made.stopping.ask("SIGTERM")
        await made.run
    assert not (tmp_path / "s-0").exists()


@pytest.mark.case(192)
async def test_a_stale_socket_is_removed_before_the_generator_starts_and_is_no_readiness(
    scene, heard, tmp_path
):
    os.mkfifo(tmp_path / "gate")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "s-0"))
    late = {"GENERATOR": "late", "GATE": str(tmp_path / "gate")}
    async with scene(late, shard_uds_path=str(tmp_path / "s")):
        await heard.until(r"Waiting for shard to be ready\.\.\. \(loading\)")
        assert not (tmp_path / "s-0").exists()
        assert "Shard ready in" not in heard.text
        await asyncio.to_thread((tmp_path / "gate").write_text, "go")
        await heard.until("Shard ready in")


async def test_a_socket_of_a_living_server_stops_it_by_the_flags_name(scene, heard, tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        async with scene(master_shard_uds_path=str(tmp_path / "s")) as made:
            with pytest.raises(ConfigError, match="--master-shard-uds-path") as caught:
                await made.run
    assert caught.value.rule == "socket"
    assert (tmp_path / "s").is_socket()


def test_the_generator_gets_the_python_that_the_image_names_for_it():
    ours = Programs.of({})
    assert ours == Programs()
    theirs = Programs.of({"NEURON_TGI_GENERATOR_PYTHON": "/opt/neuron/bin/python"})
    assert (theirs.generator[0], theirs.router) == ("/opt/neuron/bin/python", ours.router)
