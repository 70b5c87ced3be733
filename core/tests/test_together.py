"""Questions of many callers go to the database in few lists, and each caller gets its own answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from core.together import Together


class Slow:
    """What is asked: it doubles numbers, refuses a list with a 13, and answers when it is let."""

    def __init__(self) -> None:
        self.lists: list[list[int]] = []
        self.asked, self.may_answer = threading.Event(), threading.Event()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        """Answer a list."""
        self.lists.append(list(numbers))
        self.asked.set()
        assert self.may_answer.wait(20)
        if 13 in numbers:
            raise ValueError(13)
        return [2 * number for number in numbers]


def ask_while_one_is_asked(slow: Slow, numbers: Sequence[int]) -> list[Callable[[], int]]:
    """Ask for 0, then for these numbers while 0 has no answer; return what gives the answer to each of them."""
    together = Together(slow)
    with ThreadPoolExecutor(max_workers=20) as threads:
        first = threads.submit(together, 0)
        assert slow.asked.wait(20)
        others = [threads.submit(together, number) for number in numbers]
        while len(together._waiting) <= len(numbers):
            threading.Event().wait(0.001)
        slow.may_answer.set()
    assert first.result() == 0
    return [other.result for other in others]


def test_it_asks_for_all_who_came_meanwhile_at_once() -> None:
    slow = Slow()
    answers = ask_while_one_is_asked(slow, range(1, 10))
    assert [answer() for answer in answers] == [2 * number for number in range(1, 10)]
    assert [sorted(each) for each in slow.lists] == [[0], list(range(1, 10))]


def test_it_raises_for_all_in_a_list_and_goes_on() -> None:
    slow = Slow()
    for answer in ask_while_one_is_asked(slow, [12, 13, 14]):
        with pytest.raises(ValueError, match="13"):
            answer()
    together = Together(slow)
    with pytest.raises(ValueError, match="13"):
        together(13)
    assert together(4) == 8
    assert not together._waiting


def test_a_killed_caller_leaves_its_question_to_the_others() -> None:
    killed: list[Sequence[int]] = []

    def ask(numbers: Sequence[int]) -> Sequence[int]:
        if not killed:
            killed.append(numbers)
            raise KeyboardInterrupt
        return numbers

    together = Together(ask)
    with pytest.raises(KeyboardInterrupt):
        together(1)
    assert together(2) == 2
