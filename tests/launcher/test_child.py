from __future__ import annotations

import asyncio
import os
import select
import signal
import sys

from launcher.child import Child, stop

ENV = {"PATH": os.environ["PATH"]}


class Lines:
    """What was forwarded."""

    def __init__(self) -> None:
        self.all: list[tuple[str, bytes]] = []
        self.event = asyncio.Event()

    def __call__(self, name: str, line: bytes) -> None:
        self.all.append((name, line))
        self.event.set()


async def start(code: str, lines: Lines | None = None) -> Child:
    argv = [sys.executable, "-S", "-E", "-u", "-c", code]
    return await Child.start("child", argv, ENV, lines or Lines())


async def test_both_streams_are_forwarded_line_by_line_in_order():
    lines = Lines()
    child = await start(
        "import sys; print('one'); print('two', file=sys.stderr); sys.stdout.write('three')", lines
    )
    assert await child.ended == 0
    assert lines.all == [("child", b"one\n"), ("child", b"two\n"), ("child", b"three\n")]


async def test_the_last_words_are_the_last_twenty_lines():
    child = await start("for i in range(100): print('line', i)\nraise ValueError('the end')")
    assert await child.ended == 1
    words = child.last_words.splitlines()
    assert len(words) == 20
    assert words[-1] == "    ValueError: the end"
    assert child.how_it_ended() == "exited with status 1"


async def test_a_huge_line_passes_and_does_not_fill_the_last_words():
    lines = Lines()
    child = await start("import sys; sys.stdout.write('x' * 5_000_000 + '\\nend\\n')", lines)
    assert await child.ended == 0
    assert sum(len(line) for _, line in lines.all) == 5_000_005
    assert max(len(line) for _, line in lines.all) < 2 * 1024 * 1024
    assert child.last_words.endswith("    end")
    assert len(child.last_words) < 20_000


async def test_bytes_that_are_no_text_are_forwarded_as_they_are():
    lines = Lines()
    child = await start("import os; os.write(1, b'\\xff\\xfe\\n')", lines)
    await child.ended
    assert lines.all == [("child", b"\xff\xfe\n")]


async def test_stdin_is_empty():
    child = await start("import sys; sys.exit(len(sys.stdin.read()))")
    assert await child.ended == 0


async def test_the_child_is_in_a_session_of_its_own():
    lines = Lines()
    child = await start("import os; print(os.getsid(0), os.getpgid(0))", lines)
    await child.ended
    assert lines.all == [("child", f"{child.pid} {child.pid}\n".encode())]


async def test_sigterm_is_enough_for_a_polite_child():
    child = await start("import time; print('up'); time.sleep(60)")
    assert await stop(child, 20, asyncio.Event())
    assert await child.ended == -signal.SIGTERM
    assert child.how_it_ended() == "was killed by signal 15 (SIGTERM)"


_STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(60)"


async def test_a_child_that_ignores_sigterm_is_killed_after_its_grace():
    lines = Lines()
    child = await start(_STUBBORN, lines)
    await lines.event.wait()
    assert not await stop(child, 0.05, asyncio.Event())
    assert "SIGKILL" in child.how_it_ended()
    assert "memory" in child.how_it_ended()


async def test_hurry_ends_the_grace():
    lines, hurry = Lines(), asyncio.Event()
    child = await start(_STUBBORN, lines)
    await lines.event.wait()
    stopping = asyncio.create_task(stop(child, 60, hurry))
    hurry.set()
    assert not await stopping


async def test_stopping_what_has_ended_is_nothing():
    child = await start("pass")
    await child.ended
    assert await stop(child, 1, asyncio.Event())


async def test_what_a_dead_child_leaves_behind_is_killed_with_it():
    lines = Lines()
    code = "import os, time\nif os.fork() == 0:\n    print(os.getpid())\n    time.sleep(60)\nos.wait()"
    child = await start(code, lines)
    await lines.event.wait()
    grandchild = int(lines.all[0][1])
    watch = os.pidfd_open(grandchild)
    os.kill(child.pid, signal.SIGKILL)
    await child.ended  # at the end of the output, which the grandchild held open
    assert select.select([watch], [], [], 20)[0], "it still runs"
    os.close(watch)
