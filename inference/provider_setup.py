"""The form that adds a provider with its models, deployments and prices in one page.

A preset fills in what is known of a provider. A test asks for its list of models; each of them is a line to tick, whose
context size and prices come from the provider or from genai-prices' table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget, UnfoldBooleanWidget

from core.formats import count, price_text
from inference.catalog import provider_route
from inference.models import MODEL_NAME, Deployment, Model, Provider
from inference.seeds import OPENAI_URL, listed_context, listed_prices
from inference.services import ModelAtProvider
from inference.upstream.authentication import missing_library
from inference.upstream.client import upstream
from inference.upstream.errors import AttemptFailed

if TYPE_CHECKING:
    ProviderModelForm = forms.ModelForm[Provider]
else:
    ProviderModelForm = forms.ModelForm


@dataclass(frozen=True, slots=True)
class Preset:
    """What is known of a provider before it is added; `is_free` where nobody bills by tokens."""

    title: str
    name: str = ""
    base_url: str = ""
    api_key_variable: str = ""
    style: str = Provider.Style.OPENAI
    api_version: str = ""
    is_free: bool = False
    note: str = ""

    @property
    def initial(self) -> dict[str, str]:
        """The initial values of the form."""
        fields = ("name", "base_url", "api_key_variable", "style", "api_version")
        return {name: str(getattr(self, name)) for name in fields}


_SELF_HOSTED = "This is the usual address on the same machine, which LOOPBACK_PROVIDERS=true allows."
PRESETS = {
    "openai": Preset("OpenAI", "openai", OPENAI_URL, "OPENAI_API_KEY"),
    "anthropic": Preset(
        *("Anthropic", "anthropic", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY", Provider.Style.ANTHROPIC),
    ),
    "azure": Preset(
        *("Azure OpenAI", "azure", "https://RESOURCE.openai.azure.com", "AZURE_OPENAI_API_KEY", Provider.Style.AZURE),
        api_version="2024-10-21",
        note="Azure lists its whole catalog, not your deployments: add yours by name.",
    ),
    "gemini": Preset(
        *("Google Gemini", "gemini", "https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
    ),
    "vertex": Preset(
        "Google Vertex AI",
        "vertex",
        "https://LOCATION-aiplatform.googleapis.com/v1/projects/PROJECT/locations/LOCATION/endpoints/openapi",
        style=Provider.Style.VERTEX,
        note="Replace LOCATION and PROJECT. Google's credentials come from GOOGLE_APPLICATION_CREDENTIALS or the "
        "machine, and need requirements-clouds.txt. It lists no models: add yours by name, such as "
        "google/gemini-2.5-flash.",
    ),
    "bedrock": Preset(
        *("Amazon Bedrock", "bedrock", "https://bedrock-runtime.REGION.amazonaws.com/openai/v1", "BEDROCK_API_KEY"),
        note="Replace REGION. With a Bedrock API key, the style is that of OpenAI. To sign with AWS credentials, take "
        "Amazon's style, leave the variable empty, and install requirements-clouds.txt.",
    ),
    "mistral": Preset("Mistral", "mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "groq": Preset("Groq", "groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "openrouter": Preset("OpenRouter", "openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "ollama": Preset("Ollama", "ollama", "http://127.0.0.1:11434/v1", is_free=True, note=_SELF_HOSTED),
    "vllm": Preset("vLLM", "vllm", "http://127.0.0.1:8000/v1", is_free=True, note=_SELF_HOSTED),
    "other": Preset("Other"),
}
TEST_SECONDS = 5.0
#: Most models that are listed (OpenRouter has some 400), and the lines for models that are not.
MOST, UNLISTED = 600, 2
#: Fields in which providers list a model's context size, and the size where nobody knows it.
CONTEXT_FIELDS = ("context_window", "context_length", "max_context_length", "max_model_len")
DEFAULT_CONTEXT = 8_192
PRICES = ("input_per_million", "cached_input_per_million", "output_per_million")
#: The form field with the number of lines.
NUMBER = "model_lines"


@dataclass(frozen=True, slots=True)
class Listing:
    """A provider's models as it lists them, by name; or the `trouble`, a sentence with the remedy."""

    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trouble: str = ""


def provider_models(provider: Provider) -> Listing:
    """Ask a provider, which may be unsaved, for its models."""
    if library := missing_library(provider.style):
        return Listing(trouble=f"{library}, and restart web and worker.")
    missing = provider.missing_variables
    if missing:
        names = " and ".join(missing)
        return Listing(trouble=f"{names} is not set on this server: set it, and restart web and worker.")
    try:
        found = upstream.models(provider_route(provider), seconds=TEST_SECONDS)
    except AttemptFailed as failure:
        return Listing(trouble=_trouble(failure.cause, provider))
    return Listing({each["id"]: each for each in found if isinstance(each.get("id"), str)})


def _trouble(cause: str, provider: Provider) -> str:
    """Return what a failed test means, and what to do."""
    variable = provider.api_key_variable
    status = next((code for code in ("401", "403", "404") if cause.startswith(f"http {code}")), "")
    if status in ("401", "403"):
        refused = (
            f"It refused the secret in {variable}: check it" if variable else "It requires a secret: enter its variable"
        )
        return f"{refused} (http {status})."
    return {
        "http 404": "It has no list of models at this URL: check whether it should end in /v1 (http 404).",
        "timeout": f"It did not answer within {TEST_SECONDS:g} seconds.",
        "connect timeout": f"Its address did not answer within {TEST_SECONDS:g} seconds.",
        "connection refused": "Nothing is listening at this address and port (connection refused).",
        "connection: gaierror": "Its host can't be found: check the URL, and the name server of this machine.",
    }.get(f"http {status}" if status else cause, f"It gave an unexpected answer: {cause}.")


def _amount(label: str) -> forms.DecimalField:
    return forms.DecimalField(
        label=label, required=False, min_value=Decimal(0), max_digits=19, decimal_places=9, widget=_text()
    )


def _text() -> UnfoldAdminTextInputWidget:
    return UnfoldAdminTextInputWidget(attrs={"x-bind:disabled": "!chosen", "autocomplete": "off"})


class ModelLine(forms.Form):
    """A model of the provider, which is added if it is ticked or, in an unlisted line, named."""

    is_chosen = forms.BooleanField(required=False, widget=UnfoldBooleanWidget(attrs={"x-model": "chosen"}))
    upstream_name = forms.CharField(label="The provider's name", max_length=200, widget=forms.HiddenInput)
    public_name = forms.CharField(
        label="Name for callers", required=False, max_length=100, validators=[MODEL_NAME], widget=_text()
    )
    kind = forms.ChoiceField(
        choices=Model.Kind.choices, widget=UnfoldAdminSelectWidget(attrs={"x-bind:disabled": "!chosen"})
    )
    context_size = forms.IntegerField(
        label="Context (tokens)", initial=DEFAULT_CONTEXT, min_value=1, max_value=2**31 - 1, widget=_text()
    )
    input_per_million = _amount("Input ($ per million)")
    cached_input_per_million = _amount("Cached input")
    output_per_million = _amount("Output ($ per million)")

    def __init__(self, data: Mapping[str, Any] | None = None, *, is_listed: bool = True, **options: Any) -> None:
        super().__init__(data, **options)
        self.is_listed, self.is_unknown = is_listed, False
        if not is_listed:
            self.fields["upstream_name"].widget = UnfoldAdminTextInputWidget(attrs={"x-model": "named"})

    @property
    def values(self) -> Iterator[forms.BoundField]:
        """The fields that are shown once the line is chosen."""
        return (self[name] for name in self.fields if name not in ("is_chosen", "upstream_name"))

    @property
    def summary(self) -> str:
        """What is known of a listed model."""
        known, price = self.initial, "price unknown"
        if known.get("input_per_million") is not None:
            price = f"{price_text(known['input_per_million'])} in, {price_text(known['output_per_million'])} out"
        context = f"{count(known['context_size'])} tokens of context, " if "context_size" in known else ""
        return context + price

    def clean(self) -> dict[str, Any]:
        """Refuse half a price, and names that a new model can't have; callers use the provider's name by default."""
        cleaned = super().clean() or self.cleaned_data
        if not cleaned.get("public_name", "-"):
            cleaned["public_name"] = cleaned.get("upstream_name", "")
        prices = [cleaned.get(name) for name in PRICES]
        if (prices[0] is None) != (prices[2] is None) or (prices[1] is not None and prices[0] is None):
            self.add_error("output_per_million", "Enter the prices of input and output, or none of the prices.")
        if "public_name" in cleaned and "context_size" in cleaned:
            model = Model.objects.filter(public_name=cleaned["public_name"]).first()
            if model is None:
                model = Model(public_name=cleaned["public_name"], context_size=cleaned["context_size"])
                try:
                    model.full_clean()
                except ValidationError as error:
                    self.add_error("public_name", error.messages)
            elif model.kind != cleaned.get("kind"):
                self.add_error("kind", f"The model {model} already exists, with the kind {model.kind}.")
        return cleaned


def known_values(name: str, provider: Provider, listed: Mapping[str, Any], *, is_free: bool) -> dict[str, Any]:
    """Return what is known of a model: the initial values of its line."""
    contexts = [listed.get(each) for each in CONTEXT_FIELDS]
    context = next((size for size in contexts if isinstance(size, int) and size > 0), None)
    context = context or listed_context(name, provider.base_url)
    free = {each: Decimal(0) for each in ("input_per_million", "output_per_million")}
    return {
        "upstream_name": name,
        "public_name": name,
        "kind": Model.Kind.EMBEDDING if "embed" in name.lower() else Model.Kind.CHAT,
        **({"context_size": context} if context else {}),
        **(free if is_free else _shown_prices(name, provider.base_url)),
    }


def _shown_prices(name: str, url: str) -> dict[str, Decimal]:
    """Return the listed prices that a line shows; empty if the model is not in the list."""
    listed = listed_prices(name, url)
    return {field: listed[0][field] for field in PRICES if field in listed[0]} if listed else {}


class ProviderAddForm(ProviderModelForm):
    """A new provider, and the lines of its models."""

    preset = Preset("Other")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        variable = self.fields.get("api_key_variable")  # absent for staff who may not set it
        if variable and Provider(api_key_variable=self.preset.api_key_variable).missing_variables:
            variable.help_text = f"✗ {self.preset.api_key_variable} is not set on this server. {variable.help_text}"
        number = self.data.get(NUMBER, "")
        names = [self.data.get(f"{_prefix(line)}-upstream_name", "") for line in range(_number(number))]
        self.lines = [self._line(number, name) for number, name in enumerate(names)] or self._unlisted(0)

    @property
    def listed_lines(self) -> list[ModelLine]:
        """The lines of models that the provider lists."""
        return [line for line in self.lines if line.is_listed]

    @property
    def unlisted_lines(self) -> list[ModelLine]:
        """The lines for further models."""
        return [line for line in self.lines if not line.is_listed]

    @property
    def chosen_lines(self) -> list[ModelLine]:
        """The lines of the models to be added."""
        return [line for line in self.lines if line.is_bound]

    def list_models(self, listing: Listing) -> None:
        """Replace the lines by those of a provider's models; priced ones come first."""
        known = [
            known_values(name, self.instance, listed, is_free=self.preset.is_free)
            for name, listed in list(listing.models.items())[:MOST]
        ]
        known.sort(key=lambda values: ("input_per_million" not in values, values["upstream_name"]))
        self.lines = [ModelLine(prefix=_prefix(number), initial=values) for number, values in enumerate(known)]
        self.lines += self._unlisted(len(known))

    def known_line(self, prefix: str) -> ModelLine:
        """Return an unlisted line with what is known of the model that was typed in."""
        name, provider = (
            self.data.get(f"{prefix}-upstream_name", "").strip(),
            Provider(base_url=self.data.get("base_url", "")),
        )
        values = known_values(name, provider, {}, is_free=self.preset.is_free)
        line = ModelLine(prefix=prefix, initial=values, is_listed=False)
        line.is_unknown = "input_per_million" not in values
        return line

    def clean(self) -> dict[str, Any]:
        """Check the chosen lines as well."""
        cleaned = super().clean() or self.cleaned_data
        wrong = [line for line in self.chosen_lines if not line.is_valid()]
        if wrong:
            self.add_error(None, f"Correct these models: {', '.join(line['upstream_name'].value() for line in wrong)}.")
        pairs = [
            (line.cleaned_data.get("public_name"), line.cleaned_data.get("upstream_name")) for line in self.chosen_lines
        ]
        if len(set(pairs)) < len(pairs):
            self.add_error(None, "Two models have the same name.")
        return cleaned

    def models_added(self) -> list[ModelAtProvider]:
        """Return the models of the chosen lines of a valid form."""
        newest = Deployment.OutputParameter.MAX_COMPLETION_TOKENS
        output = newest if self.instance.base_url == OPENAI_URL else Deployment.OutputParameter.MAX_TOKENS
        return [
            ModelAtProvider(
                public_name=line.cleaned_data["public_name"],
                kind=line.cleaned_data["kind"],
                context_size=line.cleaned_data["context_size"],
                upstream_name=line.cleaned_data["upstream_name"],
                output_parameter=output,
                prices=self._prices(line.cleaned_data),
            )
            for line in self.chosen_lines
        ]

    def _prices(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return a line's prices; unless they were changed, with those that the list has beside the shown ones."""
        shown = {name: values[name] for name in PRICES}
        if shown["input_per_million"] is None:
            return []
        listed = listed_prices(values["upstream_name"], self.instance.base_url)
        is_listed = bool(listed) and all(listed[0].get(name) == shown[name] for name in PRICES)
        return listed if is_listed else [shown]

    def _line(self, number: int, name: str) -> ModelLine:
        """Return a line as it was sent; one that was not chosen has the initial values again."""
        prefix, is_listed = _prefix(number), f"{_prefix(number)}-listed" in self.data
        if f"{prefix}-is_chosen" in self.data or (name and not is_listed):
            return ModelLine(self.data, prefix=prefix, is_listed=is_listed)
        provider = Provider(base_url=self.data.get("base_url", ""))
        values = known_values(name, provider, {}, is_free=self.preset.is_free) if name else {}
        return ModelLine(prefix=prefix, initial=values, is_listed=is_listed)

    def _unlisted(self, first: int) -> list[ModelLine]:
        initial = dict.fromkeys(PRICES[::2], 0) if self.preset.is_free else {}
        return [ModelLine(prefix=_prefix(first + n), initial=initial, is_listed=False) for n in range(UNLISTED)]


def _prefix(number: int) -> str:
    return f"model-{number}"


def _number(text: str) -> int:
    return min(int(text), MOST + UNLISTED) if text.isascii() and text.isdigit() and len(text) < 5 else 0
