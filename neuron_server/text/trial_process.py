"""The generator's end of ``text.trial``: a process that grammars are tried in before they are let in."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from contextlib import suppress

from neuron_server.errors import GenerationError
from neuron_server.grammar import Grammar

logger = logging.getLogger(__name__)

#: A trial is bounded in CPU seconds; this is for a machine that is busy with something else.
_ANSWER_S = 30.0
_LINE = 1 << 20


class TrialProcess:
    """Started at the first trial, and again after it was lost. One trial at a time; it costs about 5 ms."""

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-m", "neuron_server.text.trial")) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    async def bytes_of(self, grammar: Grammar) -> int:
        """How much memory the grammar takes.

        Raises ``ValueError`` with what is wrong with it, and ``GenerationError`` when no trial can be had. A
        process that was lost since the last trial, to a kernel short of memory say, is no reason for that.
        """
        try:
            answer = await asyncio.wait_for(self._ask_anew_if_lost(grammar), _ANSWER_S)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
            await self.close()
            logger.error("no grammar can be tried: %s: %s", type(error).__name__, error)
            raise GenerationError("the grammar could not be compiled: its trial did not end") from error
        except asyncio.CancelledError:
            await self.close()  # its answer would be taken for the next one's
            raise
        if "error" in answer:
            raise ValueError(answer["error"])
        return int(answer["bytes"])

    async def _ask_anew_if_lost(self, grammar: Grammar) -> dict[str, str]:
        if self._process is not None:
            try:
                return await self._ask(grammar)
            except (OSError, EOFError) as error:
                logger.warning("the process that grammars are tried in is lost: %s", error)
                await self.close()
        return await self._ask(grammar)

    async def _ask(self, grammar: Grammar) -> dict[str, str]:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_LINE
            )
        writing, reading = self._process.stdin, self._process.stdout
        assert writing is not None
        assert reading is not None
        writing.write(json.dumps([grammar.kind, grammar.text]).encode() + b"\n")
        await writing.drain()
        line = await reading.readline()
        if not line:
            raise EOFError("the trial process has ended")
        answer: dict[str, str] = json.loads(line)
        return answer

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
