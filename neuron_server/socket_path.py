"""Where a generator's unix socket may be: how long its path can be, and whether the place is free."""

from __future__ import annotations

import os
import socket
import stat
import sys

from neuron_server.errors import ConfigError

#: sockaddr_un on Linux and macOS, less the closing zero.
LONGEST_BYTES = 107 if sys.platform == "linux" else 103


def check_length(path: str, flag: str) -> None:
    """Raise ``ConfigError`` (rule ``socket``) for a path that no socket can have; nothing is looked at."""
    length = len(os.fsencode(path))
    if length > LONGEST_BYTES:
        too_long = f"it has {length} bytes; a socket path has at most {LONGEST_BYTES}: choose a shorter one"
        raise _wrong(path, flag, too_long)


def clear_stale(path: str, flag: str) -> None:
    """Remove a socket nobody answers on.

    Raises ``ConfigError`` (rule ``socket``) when somebody does, when it is no socket, or when none can be
    made there; ``flag`` is what the user changes to mend it.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        if not os.access(os.path.dirname(path) or ".", os.W_OK | os.X_OK):
            raise _wrong(path, flag, "its directory does not exist or cannot be written to") from None
        return
    except OSError as error:
        raise _wrong(path, flag, f"it cannot be looked at: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise _wrong(path, flag, "a file that is not a socket is there: remove it, or choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # its queue is full, so somebody listens
        except OSError as error:
            raise _wrong(path, flag, f"it cannot be used: {error.strerror}") from error
    raise _wrong(path, flag, "another server answers there: stop it, or choose another path")


def _wrong(path: str, flag: str, what: str) -> ConfigError:
    return ConfigError(f"{flag} places a generator's socket at {path}, but {what}", rule="socket")
