"""Cleans up after a launcher that could not: ``kill -9`` leaves no process, no socket and no directory.

A few lines of shell wait for the end of a pipe that only the launcher holds. The programs notice the end of
the launcher by themselves; this is for one that is stuck, and for the files, which nobody else owns.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
from collections.abc import Sequence

log = logging.getLogger("text_generation_launcher")

#: For any POSIX shell (dash knows no ``kill --``). Reads "+ GROUP" and "- GROUP". At the end of the pipe it
#: removes the sockets, ends the groups still listed and removes what those left. Sockets outside a private
#: directory ($1) are removed at once or never: a moment later they may be those of the next launcher.
_SCRIPT = """
directory=$1; shift; groups=
while read -r sign group; do
  rest=; for g in $groups; do [ "$g" = "$group" ] || rest="$rest $g"; done; groups=$rest
  [ "$sign" = - ] || groups="$groups $group"
done
rm -f -- "$@"
for g in $groups; do kill -TERM "-$g"; done
for moment in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  rest=; for g in $groups; do kill -0 "-$g" && rest="$rest $g"; done; groups=$rest
  [ -n "$groups" ] || break
  sleep 0.1
done
for g in $groups; do kill -KILL "-$g"; done
[ -z "$directory" ] || { rm -f -- "$directory"/shard-*; rmdir -- "$directory"; }
"""


class Janitor:
    """A shell that outlives the launcher by a moment, and what it has to remove."""

    def __init__(self, directory: str | None, sockets: Sequence[str]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        shell = shutil.which("sh")
        if shell is None:
            log.warning("no sh here: a launcher killed with SIGKILL will leave its sockets behind")
            return
        self._process = subprocess.Popen(  # noqa: S603 the script above, and paths as arguments
            [shell, "-c", _SCRIPT, "neuronx-tgi-janitor", directory or "", *sockets],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, group: int) -> None:
        """A process group was started."""
        self._write(f"+ {group}\n")

    def forget(self, group: int) -> None:
        """A process group is gone; its number may soon be somebody else's."""
        self._write(f"- {group}\n")

    def close(self) -> None:
        """Let it do its work, and wait for it."""
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)

    def _write(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()
