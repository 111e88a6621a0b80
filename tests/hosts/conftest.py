"""What lies here runs optimum-neuron's own code, in environments that ``make test-neuron-hosts`` makes."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("optimum") else ["*"]
