"""The prompts, word for word: whoever changes one has to change the version, and this file."""

from __future__ import annotations

import hashlib
import json

from inference import prompts

#: Digest of all that is sent, by version.
DIGESTS = {2: "88a4c92b6ce7cfd5"}


def test_it_asks_a_question_behind_the_system_message() -> None:
    assert prompts.chat_messages("Why?") == [
        {"role": "system", "content": "You are a helpful AI assistant."},
        {"role": "user", "content": "Why?"},
    ]


def test_it_asks_for_a_summary_in_so_many_sentences_of_the_whole_text() -> None:
    for length, sentences in prompts.SENTENCES.items():
        system, user = prompts.summary_messages("The text.", length)
        assert system["role"] == "system"
        assert sentences in user["content"]
        assert "The text." in user["content"]
    assert prompts.SENTENCES == {"short": "1-2 sentences", "medium": "3-4 sentences", "long": "5-6 sentences"}


def test_it_has_a_version_that_goes_with_the_words() -> None:
    sent = [prompts.chat_messages("Q"), *(prompts.summary_messages("T", length) for length in prompts.SENTENCES)]
    words = json.dumps([sent, prompts.SUMMARY_TEMPERATURE])
    digest = hashlib.sha256(words.encode()).hexdigest()[:16]
    assert DIGESTS.get(prompts.VERSION) == digest, f"the prompts changed: raise VERSION, and add {digest} here"
