"""How our own programs are started: what runs them, and what they may import."""

from __future__ import annotations

import sys
from collections.abc import Mapping

#: Names the Python of the generator, where that is not the launcher's. AWS's packages ask for other versions
#: of numpy, protobuf and transformers than the router does, so the image gives them an environment of theirs.
GENERATOR_PYTHON = "NEURON_TGI_GENERATOR_PYTHON"

#: For Python 3.10, which has no ``-P``: the current directory off the path, before anything else is imported.
_SAFE_PATH = "import sys; sys.path[:] = filter(None, sys.path); import runpy; "


def program(
    module: str, *, python: str = sys.executable, version: tuple[int, int] = sys.version_info[:2]
) -> tuple[str, ...]:
    """The command line that runs ``module`` with ``python``; arguments may follow.

    Unlike ``python -m`` it keeps the current directory off the import path. Whoever starts the launcher
    inside a downloaded model would run that model's ``socks.py`` or ``numpy.py`` otherwise.
    """
    if python == sys.executable and version >= (3, 11):
        return (python, "-P", "-m", module)
    return (python, "-c", f"{_SAFE_PATH}runpy.run_module({module!r}, None, '__main__', True)")


def generator_python(environ: Mapping[str, str]) -> str:
    """The interpreter of what touches the device: the generator, and the export of a model."""
    return environ.get(GENERATOR_PYTHON) or sys.executable
