"""The contract matrix as a plugin of pytest: subjects, marks, and what each run showed.

``--subject NAME`` (several times, or with commas) chooses the columns whose subjects run; without it all run
that need no environment of their own. A test that asks for the fixture ``world`` (by way of ``backend`` or
``batch``) runs once for each subject, mode and output that it applies to. ``@pytest.mark.group(3)`` says
which of ``groups.GROUPS`` it shows; ``@pytest.mark.only(mode="rebuild", output="tokens")`` limits where,
``only(needs="draw")`` to subjects that have this, and ``only(once=True)`` to one world of each subject.
"""

from __future__ import annotations

import pytest
from contract import matrix
from contract.groups import GROUPS
from contract.results import ROOT, Recorder
from contract.subject import Subject
from contract.subjects import DEFAULT, PLACES, column_of, load_subjects
from contract.world import World

RECORDER = pytest.StashKey[Recorder]()
SUBJECTS = pytest.StashKey[list[Subject]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--subject",
        action="append",
        default=None,
        metavar="NAME",
        help=f"column of the contract tests, one of {', '.join(PLACES)} (default: {', '.join(DEFAULT)})",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "group(*numbers): shows these groups of the contract of backends")
    config.addinivalue_line("markers", "only(mode, output, needs, once): limits a contract test to these")
    asked = [name for value in config.getoption("--subject") or DEFAULT for name in value.split(",")]
    for name in asked:
        if name not in PLACES:
            raise pytest.UsageError(f"--subject {name!r}: there are {', '.join(PLACES)}")
    config.stash[RECORDER] = Recorder(asked)
    config.pluginmanager.register(_Reports(config.stash[RECORDER]))


def _subjects(config: pytest.Config) -> list[Subject]:
    """Loaded when the first contract test is collected, so that other runs import nothing for them."""
    if SUBJECTS not in config.stash:
        asked = config.stash[RECORDER].asked
        config.stash[SUBJECTS] = [subject for name in asked for subject in load_subjects(name)]
        config.stash[RECORDER].subjects = config.stash[SUBJECTS]
    return config.stash[SUBJECTS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "world" not in metafunc.fixturenames:
        return
    groups = {number for mark in metafunc.definition.iter_markers("group") for number in mark.args}
    only = {
        key: value for mark in metafunc.definition.iter_markers("only") for key, value in mark.kwargs.items()
    }
    worlds = [
        World(subject, mode, output)
        for subject in _subjects(metafunc.config)
        if not groups & set(subject.not_applicable)
        for mode in subject.modes
        for output in subject.outputs
        if mode == only.get("mode", mode) and output == only.get("output", output)
        if getattr(subject, only.get("needs", "name")) is not None
    ]
    if only.get("once"):
        worlds = list({world.subject.name: world for world in worlds}.values())
    metafunc.parametrize("world", worlds, ids=str)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    nowhere = [item for item in items if _applies_nowhere(item)]
    if nowhere:
        config.hook.pytest_deselected(items=nowhere)
        items[:] = [item for item in items if item not in nowhere]
    for item in items:
        numbers = tuple(number for mark in item.iter_markers("group") for number in mark.args)
        if set(numbers) - set(GROUPS):
            raise pytest.UsageError(f"{item.nodeid}: no such group: {numbers}")
        if numbers:
            world = item.callspec.params.get("world") if hasattr(item, "callspec") else None
            item.user_properties.append(("group", (numbers, world and column_of(world.subject))))


def _applies_nowhere(item: pytest.Item) -> bool:
    """Whether the test asks for a world and no subject of this run is one (else pytest reports a skip)."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return "world" in params and not isinstance(params["world"], World)


class _Reports:
    """Hands every result on to the recorder: the hook of a module knows no configuration."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.recorder.take(report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.recorder.write():
            summary = matrix.write().summary()
            terminalreporter.write_line(f"contract of backends: {summary} ({matrix.TABLE.relative_to(ROOT)})")
