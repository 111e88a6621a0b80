"""Prints the names of AWS's packages that upstream asks for and the stand-ins leave empty, one per line.

``python -m hosts.nxd.placeholders > tests/hosts/nxd/placeholders-VERSION.txt`` records them.
"""

from __future__ import annotations

import sys

from contract.subject import Wanted
from hosts.nxd import subject, upstream

from neuron_server.backend import DecodeRow, PrefillRow
from neuron_server.shape import StaticShape


def main() -> None:
    """Import, load, and run every graph once."""
    for mode in ("insert", "rebuild"):
        for output in ("logits", "tokens"):
            backend = subject.make(Wanted(StaticShape(2, 8), 4, mode, output))
            backend.prefill([PrefillRow(0, [1, 2])])
            backend.decode([DecodeRow(0, 3, 2)])
    sys.stdout.writelines(f"{name}\n" for name in sorted(upstream.stand_in().handed_out))


if __name__ == "__main__":
    main()
