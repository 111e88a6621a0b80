"""How our own programs are started: what runs them, and what they may import."""

from __future__ import annotations

import sys

#: For Python 3.10, which has no ``-P``: the current directory off the path, before anything else is imported.
_SAFE_PATH = "import sys; sys.path[:] = filter(None, sys.path); import runpy; "


def program(module: str, *, version: tuple[int, int] = sys.version_info[:2]) -> tuple[str, ...]:
    """The command line that runs ``module`` with this interpreter; arguments may follow.

    Unlike ``python -m`` it keeps the current directory off the import path. Whoever starts the launcher
    inside a downloaded model would run that model's ``socks.py`` or ``numpy.py`` otherwise.
    """
    if version >= (3, 11):
        return (sys.executable, "-P", "-m", module)
    return (sys.executable, "-c", f"{_SAFE_PATH}runpy.run_module({module!r}, None, '__main__', True)")
