"""From TGI's parameters to the three numbers that a device samples by, and what it cannot do at all.

A model that was exported with sampling on the device hands over tokens. Whatever needs its logits is refused
by name: nothing that a client asks for is ignored in silence. Rules of the device: optimum-neuron 0.4.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from neuron_server.backend import GREEDY, BackendInfo, DeviceSampling
from neuron_server.errors import ValidationError
from neuron_server.request import SamplingParams

#: The export whose models take everything that is refused here.
HOST_SAMPLING_EXPORT = "text-generation-server export ... --no-on-device-sampling"

_NO_LOGPROBS = "it tells no log-probabilities"
_NO_PENALTIES = "it has no penalties"
_NO_GRAMMARS = "no grammar can bind it"

#: What a client may ask for, by any of the names it goes by -> why a device that samples cannot.
_REASONS: Mapping[str, str] = {
    "repetition_penalty": _NO_PENALTIES,
    "frequency_penalty": _NO_PENALTIES,
    "presence_penalty": f"in TGI's chats that is a repetition penalty of 2 more, and {_NO_PENALTIES}",
    "typical_p": "it has no typical sampling",
    "seed": "it draws from a generator of its own, which cannot be seeded",
    "best_of": f"{_NO_LOGPROBS}, by which the best would be chosen",
    **dict.fromkeys(("top_n_tokens", "top_logprobs", "logprobs"), _NO_LOGPROBS),
    **dict.fromkeys(("decoder_input_details", "prompt_logprobs"), _NO_LOGPROBS),
    **dict.fromkeys(("grammar", "response_format", "tools"), _NO_GRAMMARS),
}

#: Float32, which is what a device reads: its smallest normal number and its largest.
_SMALLEST, _LARGEST = 2.0**-126, 3.4028234663852886e38

#: What top_k excludes has the logit -3000 before it is divided by the temperature. Up to here its weight is
#: below e**-30 of the likeliest token's; at 1000 it is 5 %.
_HOTTEST = 100.0

NOTHING: Mapping[str, object] = MappingProxyType({})


def device_sampling(
    params: SamplingParams, max_top_k: int, *, approximate_top_p: bool = False
) -> DeviceSampling:
    """How the device is to choose for ``params``; ``max_top_k`` as in ``BackendInfo``.

    Greedy is (1, 1.0, 1.0) whatever the warpers say, as on the host. Temperature goes as it is; one that
    float32 cannot hold is greedy, as is a top_k of 1. No top_k means ``max_top_k``: a draw among so many of
    the likeliest tokens and no others (-1, which the device takes for "off", would draw uniformly). Raises
    ``ValidationError`` for a larger top_k, for a smaller one beside a temperature above 100, for any penalty,
    typical_p or top_n_tokens that changes something, and for top_p < 1 unless ``approximate_top_p``: the
    device leaves out the token that crosses the threshold, which TGI keeps.
    """
    for name, neutral in (("repetition_penalty", 1.0), ("frequency_penalty", 0.0), ("top_n_tokens", 0)):
        if getattr(params, name) != neutral:
            raise refused(name, getattr(params, name))
    if not params.do_sample:
        return GREEDY
    if params.typical_p < 1.0:
        raise refused("typical_p", params.typical_p)
    if params.top_k > max_top_k:
        reason = f"it draws among {max_top_k} candidates at most"
        raise _refused("top_k", params.top_k, reason, f"Choose at most {max_top_k}")
    if params.top_p < 1.0 and not approximate_top_p:
        reason = "its top_p leaves out the token that crosses the threshold, so that fewer tokens are left"
        remedy = "Leave `top_p` out, start the server with --approximate-top-p to accept the difference"
        raise _refused("top_p", params.top_p, reason, remedy)
    if params.temperature < _SMALLEST or params.top_k == 1:
        return GREEDY
    if params.temperature > _HOTTEST and 0 < params.top_k < max_top_k:
        reason = "at such a heat its top_k lets back in what it has excluded"
        raise _refused("temperature", params.temperature, reason, f"Choose at most {_HOTTEST:g}")
    return DeviceSampling(
        top_k=params.top_k or max_top_k,
        top_p=max(params.top_p, _SMALLEST),
        temperature=min(params.temperature, _LARGEST),
    )


def check_on_device(
    params: SamplingParams,
    info: BackendInfo,
    asked: Mapping[str, object] = NOTHING,
    *,
    approximate_top_p: bool = False,
) -> None:
    """Raise ``ValidationError`` for what a backend that samples cannot do; any other backend does it all.

    ``asked``: what the request wants besides, name -> value, each of which needs the logits.
    """
    if info.samples:
        for name, value in asked.items():
            raise refused(name, value)
        device_sampling(params, info.max_top_k, approximate_top_p=approximate_top_p)


def refused(name: str, value: object) -> ValidationError:
    """The error for a parameter, by the name that its client knows, that no device row can express."""
    return _refused(name, value, _REASONS[name], f"Leave `{name}` out")


def _refused(name: str, value: object, reason: str, remedy: str) -> ValidationError:
    return ValidationError(
        f"`{name}` is {_shown(value)}, but this model samples on the device, which hands over tokens and no "
        f"logits: {reason}. {remedy}, or serve a model that was exported to sample on the host "
        f"({HOST_SAMPLING_EXPORT})"
    )


def _shown(value: object) -> str:
    """As the client wrote it: JSON's words, and 0.9 for what 32 bits make of it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.7g}" if isinstance(value, float) else str(value)
