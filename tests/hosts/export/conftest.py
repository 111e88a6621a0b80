"""Compiling and the compile cache with optimum-neuron's own code; which release decides which files count."""

from __future__ import annotations

from importlib import metadata

_FILES = {
    "0.4.5": ["test_export_legacy.py"],
    "0.3.0": ["test_export_legacy.py"],
    "0.0.28": ["test_export_nxd.py"],
}

collect_ignore = _FILES.get(metadata.version("optimum-neuron"), ["."])
