"""Trains the demo model that ships in ``neuron_server/demo_model``, from nothing, on one CPU core.

    python scripts/train_demo_model.py --steps 10 --out /tmp/demo        # the format, in a minute
    python scripts/train_demo_model.py --minutes 52 --out /tmp/demo      # as shipped

Needs torch, transformers and tokenizers, and no network: the text comes from the interpreter that runs the
script (``demo_corpus.py``). The batches, the initial weights and the tokenizer depend only on ``--seed``
and on the Python version; with ``--steps`` the learning rate does too, with ``--minutes`` it follows the
clock.

The exported weights are an exponential mean of the trained ones, so every export is usable, early ones too.
``--resume`` goes on from ``--checkpoint`` as if the run had not stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import demo_corpus
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LOG = logging.getLogger("train_demo_model")

END_OF_TEXT, PAD, SYSTEM, USER, ASSISTANT, END_OF_TURN = SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
]

#: Every turn is "<|role|>\ncontent<|end|>\n". Content is text or a list of parts; a tool speaks as a user.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role in ['system', 'developer'] -%}{{- '<|system|>\\n' -}}
{%- elif message.role in ['user', 'tool'] -%}{{- '<|user|>\\n' -}}
{%- elif message.role == 'assistant' -%}{{- '<|assistant|>\\n' -}}
{%- else -%}{{- raise_exception('Unknown role ' + message.role + ': use system, user, assistant or tool') -}}
{%- endif -%}
{%- if message.content is string -%}{{- message.content -}}
{%- elif message.content -%}
{%- for part in message.content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
{%- endif -%}
{{- '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""

MAX_LENGTH = 2048
#: Row length -> share of the steps. All steps hold the same number of tokens.
ROW_LENGTHS = {256: 0.60, 512: 0.22, 1024: 0.12, 2048: 0.06}
CHAT_SHARE = 0.35
PEAK_RATE, WARMUP_STEPS, WEIGHT_DECAY, MEAN_DECAY = 3e-3, 100, 0.1, 0.998


@dataclass(frozen=True)
class Ids:
    """Documents as one run of ids, each followed by end-of-text; ``starts`` are their first positions."""

    ids: torch.Tensor  # (n,)
    starts: torch.Tensor  # (documents,)


@dataclass(frozen=True)
class Data:
    """The encoded corpus; ``held_out_characters`` is the length of the held-out plain text."""

    plain: Ids
    chats: Ids
    held_out_plain: Ids
    held_out_chats: Ids
    held_out_characters: int


@dataclass
class Run:
    """What one training run owns, and all that a checkpoint holds of it."""

    NUMBERS: ClassVar = ("step", "elapsed_s", "losses", "best_step", "best_loss")

    model: LlamaForCausalLM
    mean: LlamaForCausalLM
    optimizer: torch.optim.Optimizer
    step: int = 0
    elapsed_s: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)  # held out, of the mean weights
    best_step: int = 0
    best_loss: float = math.inf  # the lowest held-out loss of plain text so far

    def judge(self, losses: dict[str, float]) -> None:
        """Takes the latest held-out losses and remembers when plain text was predicted best."""
        self.losses = losses
        if losses["plain"] < self.best_loss:
            self.best_step, self.best_loss = self.step, losses["plain"]

    def save(self, path: Path) -> None:
        """Writes the checkpoint so that a killed run leaves the previous one whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {name: getattr(self, name).state_dict() for name in ("model", "mean", "optimizer")}
        numbers = {name: getattr(self, name) for name in self.NUMBERS}
        torch.save({**parts, **numbers}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        """Restores what ``save`` wrote."""
        state = torch.load(path, weights_only=True)
        for name in ("model", "mean", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        for name in self.NUMBERS:
            setattr(self, name, state[name])


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text round-trips, and nothing is added to or removed from it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT, END_OF_TURN],
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Ids:
    """Joins the texts' ids, end-of-text after each."""
    rows = [[*row, tokenizer.eos_token_id] for row in tokenizer(texts)["input_ids"]]
    lengths = torch.tensor([0, *(len(row) for row in rows[:-1])])
    return Ids(torch.tensor([token for row in rows for token in row]), lengths.cumsum(0))


def rendered(tokenizer: PreTrainedTokenizerFast, chats: list[list[demo_corpus.Turn]]) -> list[str]:
    """The conversations as the chat template writes them."""
    messages = [[{"role": role, "content": content} for role, content in chat] for chat in chats]
    return [tokenizer.apply_chat_template(chat, tokenize=False) for chat in messages]


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Llama with grouped-query attention and tied embeddings, 1.9M parameters at a vocabulary of 2,048."""
    torch.manual_seed(seed)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TURN)]
    special = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=480,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        eos_token_id=ends,
        **special,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:  # what adds to the residual starts small, as deep as the model is
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight.mul_((2 * config.num_hidden_layers) ** -0.5)
    model.generation_config = GenerationConfig(eos_token_id=ends, max_length=MAX_LENGTH, **special)
    return model


def batch(data: Data, step: int, args: argparse.Namespace) -> torch.Tensor:
    """The ids of one step, (rows, length): a function of the seed and the step alone.

    Half the rows begin where a document begins, since that is what a prompt does.
    """
    draw = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
    shares = torch.tensor(list(ROW_LENGTHS.values()))
    length = list(ROW_LENGTHS)[int(torch.multinomial(shares, 1, generator=draw))]
    rows = []
    for _ in range(max(1, args.tokens // length)):
        source = data.chats if torch.rand((), generator=draw) < CHAT_SHARE else data.plain
        last = len(source.ids) - length
        start = int(torch.randint(last, (), generator=draw))
        if torch.rand((), generator=draw) < 0.5:
            at = int(torch.randint(len(source.starts), (), generator=draw))
            start = min(int(source.starts[at]), last)
        rows.append(source.ids[start : start + length])
    return torch.stack(rows)  # (rows, length)


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats per token; matrix products in bfloat16."""
    model.set_attn_implementation(
        "eager" if ids.shape[1] <= 256 else "sdpa"
    )  # measured: faster on short rows
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits  # (rows, length, V)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, source: Ids, length: int, limit: int = 32_768) -> float:
    """Mean nats per token over the first ``limit`` held-out tokens, in rows of ``length``."""
    count = min(len(source.ids), limit) // length
    rows = source.ids[: count * length].view(count, length)
    losses = [float(loss_of(model, part)) for part in rows.split(max(1, 4096 // length))]
    return sum(losses) / len(losses)


def held_out_losses(model: LlamaForCausalLM, data: Data) -> dict[str, float]:
    """Mean nats per held-out token, by kind of text."""
    return {
        "plain": held_out_loss(model, data.held_out_plain, 512),
        "plain, long rows": held_out_loss(model, data.held_out_plain, MAX_LENGTH),
        "chats": held_out_loss(model, data.held_out_chats, 512),
    }


def optimizer_of(model: LlamaForCausalLM) -> torch.optim.Optimizer:
    """AdamW; norms do not decay."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)


def train_step(run: Run, ids: torch.Tensor, done: float) -> float:
    """One optimizer step at the share ``done`` of the run: warm-up, then cosine to a hundredth."""
    rate = (
        PEAK_RATE
        * min(1.0, (run.step + 1) / WARMUP_STEPS)
        * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
    )
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    loss = loss_of(run.model, ids)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    decay = min(MEAN_DECAY, (run.step + 1) / (run.step + 10))
    with torch.no_grad():
        for mean, weight in zip(run.mean.parameters(), run.model.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)
    run.step += 1
    return float(loss.detach())


def export(run: Run, tokenizer: PreTrainedTokenizerFast, out: Path, card_facts: dict[str, object]) -> None:
    """Writes the mean weights in bfloat16 with all that ``from_pretrained`` reads, and the model card."""
    model = LlamaForCausalLM(run.mean.config)
    model.load_state_dict(run.mean.state_dict())
    model.generation_config = run.model.generation_config
    model.to(torch.bfloat16).save_pretrained(out, safe_serialization=True)
    (out / "model.safetensors").chmod(0o644)  # saved for the owner alone; a package is for everybody
    tokenizer.save_pretrained(out, save_jinja_files=False)
    card = Path(__file__).with_name("demo_model_card.md").read_text(encoding="utf-8")
    (out / "README.md").write_text(card.format(**card_facts), encoding="utf-8")


def train(args: argparse.Namespace) -> None:
    """Builds corpus, tokenizer and model, trains until ``--steps`` or ``--minutes``, exporting on the way."""
    corpus = demo_corpus.read()
    texts = [*corpus.plain, *(text for chat in corpus.chats for _, text in chat)]
    tokenizer = train_tokenizer(texts, args.vocab)
    data = Data(
        encode(tokenizer, corpus.plain),
        encode(tokenizer, rendered(tokenizer, corpus.chats)),
        encode(tokenizer, corpus.held_out_plain),
        encode(tokenizer, rendered(tokenizer, corpus.held_out_chats)),
        sum(map(len, corpus.held_out_plain)),
    )
    model, mean = new_model(tokenizer, args.seed), new_model(tokenizer, args.seed)
    run = Run(model, mean, optimizer_of(model))
    if args.resume:
        run.load(args.checkpoint)
    LOG.info("%d plain and %d chat tokens", len(data.plain.ids), len(data.chats.ids))
    started, losses, done = time.monotonic() - run.elapsed_s, [], progress(run, args)
    while done < 1.0:
        losses.append(train_step(run, batch(data, run.step, args), done))
        run.elapsed_s = time.monotonic() - started
        done = progress(run, args)
        if run.step % 20 == 0:
            LOG.info("step %d loss %.3f after %.0f s", run.step, sum(losses[-20:]) / 20, run.elapsed_s)
        if run.step % args.every == 0 or done >= 1.0:
            run.judge(held_out_losses(run.mean, data))
            LOG.info("held out at step %d: %s", run.step, json.dumps(run.losses))
            run.save(args.checkpoint)
            export(run, tokenizer, args.out, facts(run, data, args))


def progress(run: Run, args: argparse.Namespace) -> float:
    """The share of the run that is done, by steps or by the clock, whichever is further."""
    by_time = run.elapsed_s / (60 * args.minutes) if args.minutes else 0.0
    return max(by_time, run.step / args.steps if args.steps else 0.0)


def facts(run: Run, data: Data, args: argparse.Namespace) -> dict[str, object]:
    """What the model card says about the run."""
    characters_per_token = data.held_out_characters / len(data.held_out_plain.ids)
    return {
        "parameters": f"{sum(p.numel() for p in run.model.parameters()):,}",
        "vocab": f"{run.model.config.vocab_size:,}",
        "python": platform.python_version(),
        "plain_tokens": f"{len(data.plain.ids):,}",
        "chat_tokens": f"{len(data.chats.ids):,}",
        "steps": f"{run.step:,}",
        "seen": f"{run.step * args.tokens / 1e6:.1f}",
        "minutes": f"{run.elapsed_s / 60:.0f}",
        "seed": args.seed,
        "plain_loss": f"{run.losses['plain']:.2f}",
        "plain_bits": f"{run.losses['plain'] / math.log(2) / characters_per_token:.2f}",
        "chat_loss": f"{run.losses['chats']:.2f}",
        "long_loss": f"{run.losses['plain, long rows']:.2f}",
        "best_step": f"{run.best_step:,}",
        "best_loss": f"{run.best_loss:.2f}",
        "uniform_loss": f"{math.log(run.model.config.vocab_size):.2f}",
    }


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to export to")
    parser.add_argument("--steps", type=int, default=0, help="stop after this many optimizer steps")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after this much wall time")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--vocab", type=int, default=2048, help="size of the vocabulary, special tokens included"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per optimizer step")
    parser.add_argument("--every", type=int, default=400, help="steps between exports")
    parser.add_argument("--checkpoint", type=Path, default=Path("build/demo_model.pt"))
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    args = parser.parse_args()
    if not args.steps and not args.minutes:
        parser.error("give --steps, --minutes, or both")
    if args.tokens < MAX_LENGTH:
        parser.error(f"--tokens is {args.tokens}: at least {MAX_LENGTH}, so that one step holds one long row")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
