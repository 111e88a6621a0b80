"""Published clients against a real server: each does generate, stream, chat, stream chat and an error.

``make test-clients`` makes the clients' environments and calls this; the table goes to stdout and to
``build/client-matrix.md``. The status is 1 if any check failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from harness import Server  # noqa: E402 - it lies one directory up
from report import FEATURES  # noqa: E402

#: The server's own environment (it holds huggingface_hub 0.3x), and the one that ``make test-clients`` fills.
OURS = sys.executable
THEIRS = str(ROOT / "build" / "clients" / "bin" / "python")

CLIENTS = (
    (OURS, "check_huggingface_hub.py"),
    (THEIRS, "check_huggingface_hub.py"),
    (OURS, "check_text_generation.py"),
    (THEIRS, "check_openai.py"),
    (THEIRS, "check_langchain_openai.py"),
    (THEIRS, "check_litellm.py"),
    ("node", "check_inference.mjs"),
)
_TIMEOUT_S = 180


def check(program: str, script: str, base_url: str) -> dict[str, object]:
    """What one client reports; a client that does not even run fails everything."""
    done = subprocess.run(
        [program, str(HERE / script), base_url],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    try:
        report: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"client": script, "results": dict.fromkeys(FEATURES, done.stderr or done.stdout)}
    return report


def _fine(result: str) -> bool:
    return result == "pass" or result.startswith("client defect: ")


def main() -> int:
    server = Server("--max-batch-size", "4")
    try:
        server.wait_ready()
        reports = [check(program, script, server.base_url) for program, script in CLIENTS]
    finally:
        server.stop()
    lines = ["| client | " + " | ".join(FEATURES) + " |", "|---" * (len(FEATURES) + 1) + "|"]
    failures = []
    for report in reports:
        results = report["results"]
        words = [results[f] if _fine(results[f]) else "FAIL" for f in FEATURES]
        lines.append(f"| {report['client']} | " + " | ".join(words) + " |")
        failures += [f"{report['client']}, {f}:\n{results[f]}" for f in FEATURES if not _fine(results[f])]
    table = "\n".join(lines) + "\n"
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "client-matrix.md").write_text(table)
    print("\n".join([table, *failures]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
