"""What a model that samples on the device cannot do, refused in the words of its client.

Before a permit is taken and before any byte of an answer: such a request can never be served here, so it
shall not wait for others, and a stream gets its real status.
"""

from __future__ import annotations

from neuron_server.backend import BackendInfo
from neuron_server.device_sampling import check_on_device, refused
from neuron_server.router.openai_schema import ChatRequest
from neuron_server.router.tgi_schema import GenerateParameters
from neuron_server.router.tools import ToolPlan
from neuron_server.router.validation import check_sampling


def samples_on_device(info: BackendInfo | None) -> bool:
    """Whether the generators hand over tokens; ``info`` is ``None`` before one of them was ready."""
    return info is not None and info.samples


def check_parameters(
    parameters: GenerateParameters, info: BackendInfo | None, *, approximate_top_p: bool
) -> None:
    """Raise ``ValidationError`` for the first parameter that needs logits which nobody gets.

    TGI's own rules for sampling come first. Values that change nothing are fine, and so is a seed where
    nothing is drawn: greedy answers are the same with any.
    """
    if info is None or not info.samples:
        return
    sampling = check_sampling(parameters)
    asked: dict[str, object] = {}
    if (parameters.best_of or 1) > 1:
        asked["best_of"] = parameters.best_of
    if parameters.seed is not None and sampling.do_sample:
        asked["seed"] = parameters.seed
    if parameters.decoder_input_details:
        asked["decoder_input_details"] = True
    if parameters.grammar is not None:
        asked["grammar"] = parameters.grammar.type
    check_on_device(sampling, info, asked, approximate_top_p=approximate_top_p)


def check_chat(request: ChatRequest, tools: ToolPlan | None, info: BackendInfo | None) -> None:
    """The same for what a chat calls by names of its own, or shows without generating it differently.

    ``tools`` are those that are active. A ``presence_penalty`` p is TGI's repetition penalty p + 2, of which
    -1 changes nothing and 0 does.
    """
    if info is None or not info.samples:
        return
    asked: dict[str, object] = {}
    if request.logprobs:
        asked["logprobs"] = True
    if request.top_logprobs:
        asked["top_logprobs"] = request.top_logprobs
    if request.presence_penalty not in (None, -1.0):
        asked["presence_penalty"] = request.presence_penalty
    if request.response_format is not None:
        asked["response_format"] = request.response_format.type
    if tools is not None:
        asked["tools"] = f"a list of {len(request.tools or ())}"
    for name, value in asked.items():
        raise refused(name, value)
