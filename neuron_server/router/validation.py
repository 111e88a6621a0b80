"""From TGI's parameters to a request that is valid for the static shape, or the error that names the rule.

Rules, their order and their texts are TGI's; where this server knows less than TGI (watermarks, adapters) the
refusal names the field.
"""

from __future__ import annotations

import asyncio
import ctypes
import secrets
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from neuron_server.config import RouterConfig
from neuron_server.errors import ValidationError
from neuron_server.request import GenerationRequest, SamplingParams
from neuron_server.router.grammar import GrammarReader
from neuron_server.router.tgi_schema import GenerateParameters
from neuron_server.text.tokenizer import LONG_TEXT_CHARS, Tokenizer

#: TGI checks and budgets ``max_new_tokens`` in pieces of this many tokens (its contract since 3.0).
_PIECE_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class ValidRequest:
    """``request`` in ids, and what only the text half needs.

    ``seed`` is what the client is told: ``None`` when the request does not sample, or a device does it.
    ``piece`` is the number of new tokens TGI would have checked and budgeted.
    """

    request: GenerationRequest
    stops: tuple[str, ...]
    seed: int | None
    piece: int

    @property
    def input_length(self) -> int:
        """Prompt tokens, after truncation."""
        return self.request.prompt_length


def check_stream_only(parameters: GenerateParameters) -> None:
    """What a stream cannot do; checked before a permit is taken."""
    if parameters.best_of is not None and parameters.best_of != 1:
        raise ValidationError("`best_of` != 1 is not supported when streaming tokens")
    if parameters.decoder_input_details:
        raise ValidationError("`decoder_input_details` == true is not supported when streaming tokens")


def check_best_of(best_of: int, max_best_of: int) -> None:
    """Whether so many copies are allowed here; checked before permits are taken."""
    if best_of > 1 and max_best_of == 1:
        raise ValidationError("`best_of` != 1 is not allowed for this endpoint")
    if best_of > max_best_of:
        raise ValidationError(f"`best_of` must be > 0 and <= {max_best_of}. Given: {best_of}")


class Validator:
    """Checks and tokenizes. Long prompts are tokenized by ``executor`` so that streams go on meanwhile."""

    def __init__(self, config: RouterConfig, tokenizer: Tokenizer, executor: Executor) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._executor = executor
        self._grammars = GrammarReader(executor, disabled=config.disable_grammar_support)

    async def validate(
        self,
        inputs: str,
        parameters: GenerateParameters,
        *,
        add_special_tokens: bool = True,
        seeded: bool = True,
        on_length: Callable[[int], None] = lambda _: None,
    ) -> ValidRequest:
        """Raises ``ValidationError`` with the first rule that is broken, in TGI's order.

        ``seeded`` says whether draws follow the seed: those of a device that samples do not. ``on_length`` is
        told the prompt's tokens once they are found to fit; other rules come after that.
        """
        sampling = check_sampling(parameters)
        self._check_limits(inputs, parameters)
        _check_unsupported(parameters)
        ids = await self._encode(inputs, add_special_tokens)
        if parameters.truncate is not None:
            ids = ids[-parameters.truncate :]
        requested = parameters.max_new_tokens
        room = self._config.max_total_tokens - len(ids)
        piece = min(max(room, 0) if requested is None else requested, _PIECE_TOKENS)
        self._check_length(len(ids), piece)
        on_length(len(ids))
        grammar = None if parameters.grammar is None else await self._grammars.read(parameters.grammar)
        return ValidRequest(
            request=GenerationRequest(
                input_ids=tuple(ids),
                prompt_length=len(ids),
                max_new_tokens=room if requested is None else min(requested, room),
                sampling=sampling,
                stop_ids=self._tokenizer.eos_ids,
                prompt_logprobs=parameters.decoder_input_details,
                grammar=grammar,
            ),
            stops=tuple(parameters.stop),
            seed=sampling.seed if sampling.do_sample and seeded else None,
            piece=piece,
        )

    def _check_limits(self, inputs: str, parameters: GenerateParameters) -> None:
        """Rows 8 to 13 of TGI's order."""
        config, stops = self._config, len(parameters.stop)
        if parameters.max_new_tokens == 0:
            raise ValidationError("`max_new_tokens` must be strictly positive")
        if stops > config.max_stop_sequences:
            raise ValidationError(
                f"`stop` supports up to {config.max_stop_sequences} stop sequences. Given: {stops}"
            )
        if parameters.seed is not None and (parameters.best_of or 1) > 1:
            raise ValidationError("`seed` must not be set when `best_of` > 1")
        top_n = parameters.top_n_tokens or 0
        if top_n > config.max_top_n_tokens:
            raise ValidationError(
                f"`top_n_tokens` must be >= 0 and <= {config.max_top_n_tokens}. Given: {top_n}"
            )
        if not inputs:
            raise ValidationError("`inputs` cannot be empty")
        truncate = parameters.truncate
        if truncate is not None and not 0 < truncate <= config.max_input_tokens:
            raise ValidationError(
                f"`truncate` must be strictly positive and less than {config.max_input_tokens}. "
                f"Given: {truncate}"
            )

    def _check_length(self, tokens: int, piece: int) -> None:
        """Rows 15 and 16; the total comes first, so a prompt too long for both is told about the total."""
        config = self._config
        if tokens + piece > config.max_total_tokens:
            raise ValidationError(
                f"`inputs` tokens + `max_new_tokens` must be <= {config.max_total_tokens}. "
                f"Given: {tokens} `inputs` tokens and {piece} `max_new_tokens`"
            )
        if tokens > config.max_input_tokens:
            raise ValidationError(
                f"`inputs` must have less than {config.max_input_tokens} tokens. Given: {tokens}"
            )

    async def _encode(self, inputs: str, add_special_tokens: bool) -> list[int]:
        """Ids of the prompt, at least one."""
        try:
            if len(inputs) > LONG_TEXT_CHARS:
                loop = asyncio.get_running_loop()
                ids = await loop.run_in_executor(
                    self._executor, self._blocking_encode, inputs, add_special_tokens
                )
            else:
                ids = self._blocking_encode(inputs, add_special_tokens)
        except Exception as error:  # an edge: tokenizers raise bare Exception, foreign ones anything
            raise ValidationError(f"tokenizer error {error}") from error
        if not ids and self._tokenizer.bos_id is not None:
            return [self._tokenizer.bos_id]  # a tokenizer that drops white space left nothing to begin with
        if not ids:
            raise ValidationError("tokenizer error `inputs` has no tokens")
        return ids

    def _blocking_encode(self, inputs: str, add_special_tokens: bool) -> list[int]:
        return self._tokenizer.encode(inputs, add_special_tokens=add_special_tokens)


def check_sampling(parameters: GenerateParameters) -> SamplingParams:
    """Rows 1 to 7, on 32-bit floats as TGI compares them, and the sampling that the warpers imply.

    TGI's router passes ``do_sample`` on unchanged and its reference shard samples whenever a warper is on;
    that sum is what users of the API see, so it is decided here.
    """
    temperature = _f32(parameters.temperature, 1.0)
    repetition_penalty = _f32(parameters.repetition_penalty, 1.0)
    frequency_penalty = _f32(parameters.frequency_penalty, 0.0)
    top_p, typical_p = _f32(parameters.top_p, 0.5), _f32(parameters.typical_p, 0.5)
    warpers = (parameters.temperature, parameters.top_k, parameters.top_p, parameters.typical_p)
    if (parameters.best_of or 1) > 1 and not parameters.do_sample and all(w is None for w in warpers):
        raise ValidationError("you must use sampling when `best_of` is > 1")
    if temperature <= 0.0:
        raise ValidationError("`temperature` must be strictly positive")
    if repetition_penalty <= 0.0:
        raise ValidationError("`repetition_penalty` must be strictly positive")
    if not -2.0 <= frequency_penalty <= 2.0:
        raise ValidationError("`frequency_penalty` must be >= -2.0 and <= 2.0")
    if not 0.0 < top_p < 1.0:
        raise ValidationError("`top_p` must be > 0.0 and < 1.0")
    if not 0.0 < typical_p < 1.0:
        raise ValidationError("`typical_p` must be > 0.0 and < 1.0")
    if parameters.top_k is not None and parameters.top_k <= 0:
        raise ValidationError("`top_k` must be strictly positive")
    implied = temperature != 1.0 or any(w is not None for w in warpers[1:])
    return SamplingParams(
        do_sample=parameters.do_sample or implied,
        temperature=temperature,
        top_k=parameters.top_k or 0,
        top_p=1.0 if parameters.top_p is None else top_p,
        typical_p=1.0 if parameters.typical_p is None else typical_p,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        seed=secrets.randbits(64) if parameters.seed is None else parameters.seed,
        top_n_tokens=parameters.top_n_tokens or 0,
    )


def _check_unsupported(parameters: GenerateParameters) -> None:
    """Never ignored: a client that asks for these must learn that it does not get them."""
    if parameters.watermark:
        raise ValidationError("`watermark` is not supported: this server adds no watermarks")
    if parameters.adapter_id is not None:
        raise ValidationError("`adapter_id` is not supported: this server serves one model, without adapters")


#: The largest 32-bit float. Beyond it TGI computes with infinity, which the sampler could not divide by.
_F32_MAX = 3.4028234663852886e38


def _f32(value: float | None, default: float) -> float:
    """``value`` rounded to 32 bits."""
    if value is None:
        return default
    return min(max(ctypes.c_float(value).value, -_F32_MAX), _F32_MAX)
