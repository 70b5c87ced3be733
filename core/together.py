"""Questions of many callers that are asked together: a database answers fifty in little more time than one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(slots=True, eq=False)
class _Call(Generic[Q]):
    question: Q
    is_over: bool = False
    answer: Any = None
    error: Exception | None = None


class Together(Generic[Q, A]):
    """Ask one list of questions at a time; whoever comes meanwhile waits, and all of these are the next list.

    `ask` returns the answers in the order of the questions. What it raises is raised for every caller in the list.
    """

    def __init__(self, ask: Callable[[Sequence[Q]], Sequence[A]]) -> None:
        self._ask = ask
        self._waiting: list[_Call[Q]] = []
        self._asking = threading.Lock()

    def __call__(self, question: Q) -> A:
        """Return the answer to a question."""
        call = _Call(question)
        self._waiting.append(call)
        with self._asking:
            if not call.is_over:
                self._ask_all()
        if call.error is not None:
            raise call.error
        answer: A = call.answer
        return answer

    def _ask_all(self) -> None:
        """Ask for all who wait now. If this greenlet is killed meanwhile, another of them asks again."""
        calls = self._waiting[:]
        try:
            for call, answer in zip(calls, self._ask([call.question for call in calls]), strict=True):
                call.answer, call.is_over = answer, True
        except Exception as error:  # noqa: BLE001  (its callers raise it)
            for call in calls:
                call.error, call.is_over = error, True
        del self._waiting[: len(calls)]
