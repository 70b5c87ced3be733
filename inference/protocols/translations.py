"""Which translation an endpoint has for a provider of the other format: OpenAI's or Anthropic's."""

from __future__ import annotations

from inference.protocols.base import WireProtocol
from inference.protocols.chat import chat_protocol
from inference.protocols.chat_on_messages import chat_on_messages
from inference.protocols.messages import messages_protocol
from inference.protocols.messages_on_chat import messages_on_chat
from inference.protocols.parameters import refuse
from inference.protocols.responses import response_protocol
from inference.protocols.responses_on_chat import responses_on_chat
from inference.protocols.translation import Chain, Translation

TRANSLATIONS: dict[WireProtocol, Translation] = {
    chat_protocol: chat_on_messages,
    response_protocol: Chain(responses_on_chat, chat_on_messages),
    messages_protocol: messages_on_chat,
}


def translation(protocol: WireProtocol) -> Translation:
    """Return the translation of an endpoint; raises InvalidRequest if it has none."""
    found = TRANSLATIONS.get(protocol)
    if found is None:
        refuse("This model's provider has no such endpoint.", "model", "unsupported_endpoint")
    return found
