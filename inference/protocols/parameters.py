"""Checks of the parameters of /v1, of which each protocol makes its table: what it relies on, and what it refuses.

All other parameters are left to the provider. Errors have OpenAI's texts and codes. A check gets a parameter's name, or
the place of a field such as `messages[0].content`, and its value; it raises InvalidRequest.

The platform computes the most that a call may use before it sends it. So each endpoint accepts one name for the longest
answer and one for the number of answers; other names that some server knows are refused. Parameters that cost more than
tokens, or that make another model answer, are refused too. As with OpenAI and all servers, null means absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NoReturn

from core.errors import InvalidRequest

MISSING = "missing_required_parameter"
MOST_ANSWERS = 128
MOST_OUTPUT = 10_000_000
MOST_DIMENSIONS = 100_000

Check = Callable[[str, Any], None]


def refuse(text: str, name: str, code: str) -> NoReturn:
    """Raise InvalidRequest about a parameter or a field."""
    raise InvalidRequest(text, param=name, code=code)


def wrong_type(name: str, wanted: str) -> NoReturn:
    """Raise InvalidRequest for a value of another type than was `wanted`."""
    refuse(f"Invalid type for '{name}': expected {wanted}.", name, "invalid_type")


def of_type(kind: type, wanted: str) -> Check:
    """Return a check for values of a type."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, kind):
            wrong_type(name, wanted)

    return check


is_string = of_type(str, "a string")


def is_text(name: str, value: Any) -> None:
    """Accept a text that is not empty."""
    is_string(name, value)
    if not value:
        refuse(f"Invalid '{name}': empty string.", name, "empty_string")


def is_objects(name: str, value: Any) -> None:
    """Accept a list of objects, which may be empty."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        wrong_type(name, "an array of objects")


def is_list_of_objects(name: str, value: Any) -> None:
    """Accept a list of at least one object."""
    is_objects(name, value)
    if not value:
        refuse(f"Invalid '{name}': empty array.", name, "empty_array")


def is_prompt(name: str, value: Any) -> None:
    """Accept a text, or a list of texts, of token numbers, or of lists of those."""
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not value:
        wrong_type(name, "a string or an array that is not empty")
    kinds = {type(item) for item in value}
    if kinds == {list}:
        kinds = {int} if all(value) and {type(item) for tokens in value for item in tokens} == {int} else set()
    if kinds not in ({str}, {int}):
        wrong_type(name, "a string or an array of strings, of token numbers, or of arrays of those")


def number(minimum: float, maximum: float, *, kind: str = "integer") -> Check:
    """Return a check for numbers within bounds; `kind`: "integer" or "decimal"."""
    types, wanted = ((int,), "an integer") if kind == "integer" else ((int, float), "a number")

    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, types):
            wrong_type(name, wanted)
        if value < minimum:
            refuse(f"Invalid '{name}': expected a value of {minimum} or more.", name, f"{kind}_below_min_value")
        if value > maximum:
            refuse(f"Invalid '{name}': expected a value of {maximum} or less.", name, f"{kind}_above_max_value")

    return check


def one_of(*accepted: str) -> Check:
    """Return a check for one of a few words."""

    def check(name: str, value: Any) -> None:
        if value not in accepted:
            refuse(f"Invalid value for '{name}': expected one of {', '.join(accepted)}.", name, "invalid_value")

    return check


def unsupported(reason: str, *, off: Any = None) -> Check:
    """Return a check that accepts only `off`, the value that switches the parameter off (None: there is none).

    An empty object does not switch it off: OpenAI starts a search for `web_search_options: {}`.
    """

    def check(name: str, value: Any) -> None:
        if off is None or type(value) is not type(off) or value != off:
            refuse(f"'{name}' is not supported here: {reason}", name, "unsupported_parameter")

    return check


def others(names: Iterable[str], own: str, *, reads: Iterable[str] = ()) -> dict[str, Check]:
    """Return checks that refuse all names but `own`, which they recommend, and those in `reads`."""

    def check(name: str, value: object) -> None:
        refuse(f"Unsupported parameter: '{name}'. Use '{own}' instead.", name, "unsupported_parameter")

    return dict.fromkeys((name for name in names if name not in (own, *reads)), check)


def folded(name: str) -> str:
    """Return a parameter's name as Go, .NET and Protocol Buffers read it: `Max_Tokens`, `maxTokens` as `maxtokens`."""
    return name.replace("_", "").replace("-", "").casefold()


@cache
def names_by_fold(names: frozenset[str], fold: Callable[[str], str]) -> dict[str, str]:
    """Return the names by their folded forms."""
    return {fold(name): name for name in names}


def refuse_misspelt(
    names: Iterable[str], checked: frozenset[str], *, at: str = "", fold: Callable[[str], str] = folded
) -> None:
    """Raise InvalidRequest for a misspelt name that some servers accept as one of the `checked` names.

    `at` is the place of an object's fields, such as `messages[0].`; `fold` returns how servers read a name.
    """
    for name in names:
        if name not in checked and (meant := names_by_fold(checked, fold).get(fold(name))) is not None:
            place = f"{at}{name[:100]}"
            refuse(f"Unknown parameter: '{place}'. Did you mean '{meant}'?", place, "unknown_parameter")


#: Names of the longest answer: OpenAI's, and those of llama.cpp, Ollama, TGI, LMDeploy, TabbyAPI and their kind.
OUTPUT_NAMES = (
    "max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "num_predict", "max_new_tokens",
    "max_length", "max_gen_len", "max_gen_tokens", "max_tokens_to_sample", "max_tokens_to_generate",
    "tokens_to_generate", "request_output_len",
)  # fmt: skip
#: Names of the number of answers: OpenAI's, llama.cpp's, and those of other servers and hosts.
ANSWER_NAMES = (
    "n", "best_of", "n_cmpl", "n_choices", "num_choices", "num_completions", "num_generations", "num_results",
    "num_responses", "num_return_sequences", "candidate_count", "num_beams", "beam_width",
)  # fmt: skip
#: Names of the shortest answer (vLLM, SGLang, TGI), which may exceed the tokens granted.
LEAST_NAMES = ("min_tokens", "min_new_tokens", "min_completion_tokens", "min_output_tokens", "min_length")
#: Objects with a server's own settings, the longest answer among them: Ollama, TGI, SGLang, Gemini, SDKs.
SETTINGS_NAMES = ("options", "parameters", "sampling_params", "generation_config", "extra_body", "google")
#: Parameters that choose another model, provider or template than the one whose price is used (OpenRouter, LiteLLM,
#: vLLM).
ROUTING_NAMES = (
    "provider", "route", "preset", "chat_template", "api_base", "base_url", "api_key", "custom_llm_provider",
)  # fmt: skip
ROUTING_LISTS = ("models", "fallbacks", "model_list", "transforms")
#: What a provider bills besides tokens, or at another price: searches, its own tools, audio, faster service.
PAID_NAMES = (
    "audio",  # OpenAI
    "prediction",  # OpenAI: rejected tokens are billed on top
    "web_search_options",  # OpenAI, Perplexity, OpenRouter
    "search_parameters",  # xAI
    "web_search", "enable_search", "search_options", "enable_code_interpreter",  # DashScope, Qianfan
    "search_settings", "compound_custom",  # Groq
    "container", "speed", "inference_geo",  # Anthropic
    "deferred",  # xAI: the answer would have to be fetched later, which the platform never does
)  # fmt: skip
PAID_LISTS = (
    "plugins",  # OpenRouter
    "mcp_servers",  # Anthropic
    "data_sources",  # Azure
    "context_management",  # OpenAI and Anthropic: the text written to shorten the context is billed as well
)

EXCEEDS = "it could exceed what the call may use."
UNPRICED = "its price can't be bounded."
ELSEWHERE = "the model is chosen here, and its price with it."
KEPT = "nothing is kept at the provider."

#: Parameters that every endpoint refuses, except for values that switch them off.
REFUSED: dict[str, Check] = {
    **dict.fromkeys(LEAST_NAMES, unsupported(EXCEEDS)),
    **dict.fromkeys(SETTINGS_NAMES, unsupported(EXCEEDS)),
    **dict.fromkeys(ROUTING_NAMES, unsupported(ELSEWHERE)),
    **dict.fromkeys(ROUTING_LISTS, unsupported(ELSEWHERE, off=[])),
    **dict.fromkeys(PAID_NAMES, unsupported(UNPRICED, off=False)),
    **dict.fromkeys(PAID_LISTS, unsupported(UNPRICED, off=[])),
}
#: Parameters of all endpoints that generate text.
SAMPLING: dict[str, Check] = {
    "model": is_text,
    "stream": of_type(bool, "a boolean"),
    "temperature": number(0, 2, kind="decimal"),
    "top_p": number(0, 1, kind="decimal"),
    "service_tier": one_of("auto", "default", "flex", "priority"),  # the latter two where they have a price
    "stream_options": of_type(dict, "an object"),
}
#: Parameters of requests with effects outside, with stored data, or of one user: their answers are not cached.
UNCACHEABLE = ("tools", "functions", "store", "user", "safety_identifier", "metadata", "prompt_cache_key", "audio")
