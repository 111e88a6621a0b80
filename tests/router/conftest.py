"""A router without generators: a scripted source of events, a tiny tokenizer, and clients for the app."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

import httpx
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from neuron_server.backend import BackendInfo
from neuron_server.config import RouterConfig
from neuron_server.errors import NeuronTgiError
from neuron_server.event import FinishReason, TokenEvent, TopToken
from neuron_server.request import GenerationRequest
from neuron_server.router.app import build_app
from neuron_server.router.metrics import Metrics
from neuron_server.router.replicas import ReplicaState
from neuron_server.router.service import GenerationService
from neuron_server.session import Phase
from neuron_server.shape import StaticShape
from neuron_server.text.chat import compile_template
from neuron_server.text.tokenizer import Tokenizer, from_backend

#: Profile A of TGI's contract, on two slots.
PROFILE_A = RouterConfig(
    model_id="M",
    tokenizer_path="/nowhere",
    shard_uds_paths=("/nowhere.sock",),
    batch_size=2,
    max_input_tokens=1024,
    max_total_tokens=2048,
)

EOS = 0

#: Without tools of its own, so that they are shown behind the last message.
CHAT_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"


def make_tokenizer() -> Tokenizer:
    """Byte-level; ``Hello`` and `` Hello`` are one token, all else is one per byte; 0 is ``</s>``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["</s>", *alphabet, "He", "Hel", "Hell", "Hello", "ĠHello"]
    merges = [("H", "e"), ("He", "l"), ("Hel", "l"), ("Hell", "o"), ("Ġ", "Hello")]
    backend = Backend(models.BPE({word: n for n, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    return from_backend(backend, special_ids=frozenset({EOS}), eos_ids=frozenset({EOS}))


@dataclass
class ScriptedSource:
    """Answers with ``ids`` (cycled to ``max_new_tokens``), one event each; an exception among them is raised.

    ``gate`` holds every event back while it is not set. ``requests`` are what arrived, ``closed`` what left.
    ``others`` answer for the prompts (ids) that they stand under.
    """

    script: Sequence[int | NeuronTgiError | type[EOFError]] = (72,)
    logprob: float | None = -0.34
    phase: Phase = Phase.READY
    prompt_logprobs: bool = False
    top_tokens: bool = True
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[GenerationRequest] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    queued: int = 3
    running: int = 2
    free_slots: int = 0
    info: BackendInfo | None = None
    states: tuple[ReplicaState, ...] = (ReplicaState(0, "ready", 0, 3),)
    others: dict[tuple[int, ...], ScriptedSource] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gate.set()
        self.info = BackendInfo(StaticShape(2, 2048), 1024, 300)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        self.requests.append(request)
        self.arrived.set()
        if (other := self.others.get(request.input_ids)) is not None:
            async with contextlib.aclosing(other.stream(request)) as events:
                async for event in events:
                    yield event
            return
        try:
            for n in range(request.max_new_tokens):
                await asyncio.sleep(0)  # as a real source: never everything at once
                await self.gate.wait()
                item = self.script[n % len(self.script)]
                if isinstance(item, NeuronTgiError):
                    raise item
                if not isinstance(item, int):
                    return
                yield self._event(request, n, item)
                if item in request.stop_ids:
                    return
        finally:
            self.closed.set()

    def _event(self, request: GenerationRequest, n: int, token_id: int) -> TokenEvent:
        finish = FinishReason.LENGTH if n + 1 == request.max_new_tokens else None
        top = tuple(TopToken(token_id + k, -1.0 - k) for k in range(request.sampling.top_n_tokens))
        event = TokenEvent(
            token_id,
            self.logprob,
            top_tokens=top if self.top_tokens else (),
            finish=FinishReason.EOS_TOKEN if token_id in request.stop_ids else finish,
        )
        if n == 0:
            known = (None, *[-0.5] * (request.prompt_length - 1))
            scored = known if self.prompt_logprobs and request.prompt_logprobs else None
            event = replace(event, queue_s=0.002, prompt_logprobs=scored)
        return event


@dataclass
class Harness:
    """One application, its service, its source, and a client that reads whole answers."""

    app: object
    service: GenerationService
    source: ScriptedSource
    client: httpx.AsyncClient

    def script(self, prompt: str, *script: int | NeuronTgiError | type[EOFError]) -> ScriptedSource:
        """Answer this prompt so; returns the source of its own that does."""
        ids = tuple(self.service.tokenizer.encode(prompt))
        other = self.source.others[ids] = ScriptedSource(script)
        return other

    async def generate(self, inputs: str = "Hello", path: str = "/generate", **parameters) -> httpx.Response:
        return await self.client.post(path, json={"inputs": inputs, "parameters": parameters})


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture
async def harness(tokenizer) -> AsyncIterator[Callable[..., Harness]]:
    """A maker of harnesses: ``harness(script=..., max_best_of=1)``.

    ``opened=False`` leaves it loading, ``chat_template=None`` is a model without one.
    """
    made: list[Harness] = []

    def make(
        *,
        opened: bool = True,
        source: ScriptedSource | None = None,
        script=(72,),
        chat_template: str | None = CHAT_TEMPLATE,
        **settings,
    ) -> Harness:
        source = source or ScriptedSource(script=script)
        config = replace(PROFILE_A, **settings)
        service = GenerationService(config, source, Metrics(config))
        if opened:
            template = None if chat_template is None else compile_template(chat_template, eos_token="</s>")
            service.open(tokenizer, template)
        app = build_app(service)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        made.append(
            Harness(app, service, source, httpx.AsyncClient(transport=transport, base_url="http://t"))
        )
        return made[-1]

    yield make
    for one in made:
        await one.client.aclose()
        one.service.close()
