"""A trial of grammars in a process of its own: what kills, stalls or bloats it never reaches the generator.

The library bounds most of what it does, not all: a chain of 20,000 ``$ref`` overflows its stack (SIGSEGV),
2,000 ``patternProperties`` take minutes, ``multipleOf: 1000003`` takes 4 s and 300 MB. So every new grammar
is compiled here first, in a child made for it, with a small stack, bounded memory and bounded CPU time, and
takes a few steps, on a vocabulary of single bytes: what is bounded there is bounded in the generator.

``python -m neuron_server.text.trial`` reads one JSON array ``[kind, text]`` per line and writes one JSON
object per line: ``{"bytes": n}``, how much the process grew, or ``{"error": why}``.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import resource
import signal
import sys
import threading
from collections.abc import Sequence

from llguidance import LLMatcher, LLTokenizer

from neuron_server.text.specification import match, reason

#: CPU seconds that a grammar may take to compile and to be followed for a few steps.
CPU_S = 1.0
#: Address space that it may take beyond what the process has; 128 MB of it goes to malloc's own reserve.
ADDRESS_SPACE = 768 << 20
#: Less than a thread of the generator has, so that what fits here fits there.
_STACK = 1 << 20
_STEPS = 8

_TOO_LARGE = "it takes too much memory to compile"
_DEATHS: dict[int, str] = {
    signal.SIGSEGV: "it is nested too deeply",
    signal.SIGPROF: "it takes too long to compile",
}


class _Bytes:
    """The vocabulary: every byte, and an end."""

    eos_token_id = 256
    bos_token_id = None
    tokens: Sequence[bytes] = [*(bytes([byte]) for byte in range(256)), b"<end>"]
    special_token_ids: Sequence[int] = [256]
    is_tokenizer_wrapper = True

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def main() -> None:
    """Answer until the input ends, which is when the generator does."""
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C goes to the generator too, which ends the input
        signal.signal(number, signal.SIG_IGN)
    tokenizer = LLTokenizer(_Bytes(), slices=[])  # type: ignore[arg-type]  # it looks like a TokenizerWrapper
    gc.freeze()
    for line in sys.stdin.buffer:
        kind, text = json.loads(line)
        sys.stdout.buffer.write(_try_in_a_child(tokenizer, kind, text) + b"\n")
        sys.stdout.buffer.flush()


def _try_in_a_child(tokenizer: LLTokenizer, kind: str, text: str) -> bytes:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _bound()
        threading.stack_size(_STACK)
        thread = threading.Thread(target=lambda: os.write(writing, _try(tokenizer, kind, text)))
        thread.start()
        thread.join()
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return answer or json.dumps({"error": _DEATHS.get(killed, _TOO_LARGE)}).encode()


def _bound() -> None:
    """Memory, CPU time, no core files; whoever exceeds them dies."""
    with contextlib.suppress(OSError):  # a system without /proc has no such limit either
        with open("/proc/self/statm") as statm:
            size = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE, size + ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    with contextlib.suppress(OSError):
        os.nice(5)  # a trial yields to the streams that run


def _try(tokenizer: LLTokenizer, kind: str, text: str) -> bytes:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        _walk(match(tokenizer, kind, text))
    except (ValueError, MemoryError) as error:
        return json.dumps({"error": str(error) or _TOO_LARGE}).encode()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return json.dumps({"bytes": grown * 1024}).encode()


def _walk(matcher: LLMatcher) -> None:
    """Follow the grammar along any text. Raises ``ValueError`` when it has none, or is too complex."""
    choose = random.Random(0).choice  # noqa: S311 - any walk will do
    for _ in range(_STEPS):
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if matcher.is_error():
            raise ValueError(reason(matcher.get_error()))
        allowed = [byte for byte in range(256) if mask >> byte & 1]
        if not allowed:
            return
        matcher.consume_token(choose(allowed))


if __name__ == "__main__":
    main()
