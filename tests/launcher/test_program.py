from __future__ import annotations

import os
import subprocess
import sys

import pytest

from launcher.program import GENERATOR_PYTHON, generator_python, program


# Python 3.10 has no -P, so it can only run its own way.
@pytest.mark.parametrize("version", [v for v in ((3, 10), (3, 11)) if v <= sys.version_info[:2]])
def test_a_program_imports_nothing_from_the_current_directory(tmp_path, version):
    planted, package = tmp_path / "planted", tmp_path / "package"
    for directory in (planted, package):
        directory.mkdir()
    (planted / "json.py").write_text("raise SystemExit('the planted module ran')")
    (planted / "ours.py").write_text("raise SystemExit('the planted program ran')")
    (package / "ours.py").write_text("import json, sys; print(__name__, json.dumps(sys.argv[1:]))")
    done = subprocess.run(
        [*program("ours", version=version), "--flag", "value"],
        cwd=planted,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, '__main__ ["--flag", "value"]\n'), done.stderr


def test_another_python_gets_the_form_that_every_version_understands():
    assert program("ours", python="/opt/neuron/bin/python")[:2] == ("/opt/neuron/bin/python", "-c")


def test_the_generator_has_the_launchers_python_unless_the_image_names_another():
    assert generator_python({}) == generator_python({GENERATOR_PYTHON: ""}) == sys.executable
    assert generator_python({GENERATOR_PYTHON: "/opt/neuron/bin/python"}) == "/opt/neuron/bin/python"
