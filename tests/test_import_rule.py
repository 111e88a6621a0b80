"""The import rule of the house, and its size limits, read off every module's syntax tree.

``shape request event ...`` (rank 0: standard library and numpy) <- ``engine backends text wire`` (siblings,
never each other) <- ``router`` (never engine, never backends) <- the programs. The launcher imports
rank 0 only.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GENERATED = ROOT / "neuron_server" / "wire" / "pb"
MODULES = sorted(
    path
    for package in ("neuron_server", "launcher")
    for path in (ROOT / package).rglob("*.py")
    if GENERATED not in path.parents
)
PROGRAMS = {"serve_generator", "serve_router", "download_weights", "export_model"}
PACKAGES = {"engine", "backends", "text", "wire", "router"}
#: Modules beside rank 0 that only the programs use: what ``tracing`` promises, made with OpenTelemetry.
EDGES = {"otlp"}

#: Unit (a package of neuron_server, a program, rank 0, the launcher) -> units it may import besides rank 0.
MAY_IMPORT = {
    "rank 0": set(),
    "engine": set(),
    "backends": set(),
    "text": set(),
    "wire": set(),
    "router": {"text", "wire"},
    "otlp": set(),
    "serve_generator": {"engine", "backends", "text", "wire", "otlp"},
    "serve_router": {"router", "text", "wire", "otlp"},
    "download_weights": {"backends"},
    "export_model": {"backends"},
    "launcher": set(),
}

#: Third-party packages that only these units may import (``torch``: see the test).
ONLY_IN = {
    "grpc": {"wire"},
    "fastapi": {"router", "serve_router"},
    "pydantic": {"router", "serve_router"},
    "starlette": {"router", "serve_router"},
    "uvicorn": {"router", "serve_router"},
    "sse_starlette": {"router", "serve_router"},
    "opentelemetry": {"otlp"},
    "typer": {"launcher"},
    "click": {"launcher"},
    "rich": {"launcher"},
    "torch": {"backends", "engine/sampling", "engine/candidates", "engine/loop"},
}
RANK_0_THIRD_PARTY = {"numpy"}
LAUNCHER_THIRD_PARTY = {"typer", "click", "rich"}


def unit(path: Path) -> str:
    package, *rest = path.relative_to(ROOT).with_suffix("").parts
    if package == "launcher":
        return "launcher"
    return rest[0] if rest[0] in PACKAGES | PROGRAMS | EDGES else "rank 0"


def unit_of_import(module: str) -> str | None:
    """The unit an absolute import names; ``None`` for what is not ours."""
    package, _, rest = module.partition(".")
    if package == "launcher":
        return "launcher"
    if package != "neuron_server":
        return None
    first = rest.partition(".")[0]
    return first if first in PACKAGES | PROGRAMS | EDGES else "rank 0"


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import, those inside functions and TYPE_CHECKING included."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def top(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_imports_only_downwards(path):
    allowed = {unit(path), "rank 0"} | MAY_IMPORT[unit(path)]
    wrong = [
        f"{name(path)}:{line} imports {module} ({unit_of_import(module)})"
        for line, module in imports(path)
        if unit_of_import(module) not in {None, *allowed}
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_third_party_package_stays_in_its_corner(path):
    places = {unit(path), "/".join(path.relative_to(ROOT).with_suffix("").parts[1:])}
    wrong = [
        f"{name(path)}:{line} imports {module}, which belongs to {', '.join(sorted(ONLY_IN[top(module)]))}"
        for line, module in imports(path)
        if top(module) in ONLY_IN and not places & ONLY_IN[top(module)]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [p for p in MODULES if unit(p) in ("rank 0", "launcher")], ids=name)
def test_rank_0_and_the_launcher_need_next_to_nothing_installed(path):
    extra = LAUNCHER_THIRD_PARTY if unit(path) == "launcher" else RANK_0_THIRD_PARTY
    wrong = [
        f"{name(path)}:{line} imports {module}"
        for line, module in imports(path)
        if top(module) not in sys.stdlib_module_names | extra | {"neuron_server", "launcher"}
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_file_has_at_most_400_lines_and_a_function_60(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    long = [
        f"{name(path)}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 60
    ]
    assert not long, "\n".join(long)


def test_no_module_is_a_drawer_for_everything():
    drawers = {"utils", "util", "common", "helpers", "misc"}
    assert [name(path) for path in MODULES if path.stem in drawers or path.parent.name in drawers] == []


def test_the_rule_itself_sees_what_it_should(tmp_path, monkeypatch):
    """A wrong module is found, whichever way it writes its import."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    module = tmp_path / "neuron_server" / "engine" / "wrong.py"
    module.parent.mkdir(parents=True)
    for text in (
        "import neuron_server.wire.codec",
        "from neuron_server import wire",
        "from neuron_server.wire import codec",
        "from ..wire import codec",
        "from .. import wire",
        "def f():\n    from neuron_server.wire.codec import encode_step",
    ):
        module.write_text(text)
        with pytest.raises(AssertionError, match=r"wrong.py:\d imports neuron_server.wire"):
            test_a_module_imports_only_downwards(module)
    module.write_text("import torch\nimport grpc.aio\n")
    with pytest.raises(AssertionError, match="wire"):
        test_a_third_party_package_stays_in_its_corner(module)
