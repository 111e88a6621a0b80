"""The 26 groups of facts that every backend must show, and the six columns of the matrix.

A test that shows a fact of a group is marked with its number, ``@pytest.mark.group(3)``, wherever it lies.
Where it uses the fixtures of ``tests/contract/conftest.py`` it runs once for each subject, mode and output,
and counts for the subject's column; elsewhere it counts for every column, since the code it shows is the same
in each (reading models, counting cores, planning: groups 20 to 24).
"""

from __future__ import annotations

from collections.abc import Mapping

GROUPS: Mapping[int, str] = {
    1: "uneven prompts in one prefill, any order of slots; lengths 1, 2, C - 1, C",
    2: "insertion while others are live, several waves; others unchanged, to the bit where shapes are static",
    3: "slots not sorted, not contiguous; highest first; a single one; all",
    4: "release and reuse: short after long, long after short, 18 steps and more",
    5: "one-token prompts: alone, beside live slots, together with longer ones",
    6: "the last possible token: prompt C up to T; a prompt of T - 1 and one token",
    7: "partial batches of every size 1 to B give the same as a full one",
    8: "500 random operations with a fixed seed against the naive model",
    9: "rebuild: join, leave, join again; no pending token lost or repeated; capacity",
    10: "chunk boundaries: lengths k x chunk - 1, k x chunk, k x chunk + 1",
    11: "refused calls: each has its error and changes nothing",
    12: "bad on-device sampling rows are refused",
    13: "greedy tokens are the argmax of the logits",
    14: "TGI's parameters become device rows; top_p deviates as documented",
    15: "sampling parameters do not leak between rows",
    16: "requests that need the host's sampling are refused by name",
    17: "the compiled callable sees only the declared shapes and types",
    18: "every decode has every live slot; one graph call per prompt",
    19: "no allocation growth over 1000 steps",
    20: "both generations of configuration are read; unknown keys, version mismatches",
    21: "static rules and derived defaults; exact match among cached entries",
    22: "cores of fake machines and every form of NEURON_RT_*",
    23: "core ranges of replicas",
    24: "driver against runtime",
    25: "drift: what our adapter uses exists in the installed release",
    26: "the stand-ins fill exactly the recorded gaps",
}

#: The columns of the matrix, in order.
COLUMNS = ("cpu-fast", "cpu-strict", "tokens", "nxd-0.4.5", "nxd-0.3.0", "legacy-0.0.28")

#: Groups about the launcher's and the reader's code, which is the same whatever backend serves.
INDEPENDENT = frozenset((20, 21, 22, 23, 24))
