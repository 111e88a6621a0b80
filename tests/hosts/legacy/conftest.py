"""What lies here needs optimum-neuron 0.0.28; the environments of the other releases pass it by."""

from __future__ import annotations

from importlib import metadata

try:
    _VERSION = metadata.version("optimum-neuron")
except metadata.PackageNotFoundError:
    _VERSION = "none"

collect_ignore_glob = [] if _VERSION == "0.0.28" else ["*"]
