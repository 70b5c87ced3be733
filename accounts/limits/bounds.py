"""Amounts of tokens and money, and the true upper bound of what a call may cost.

Money is integer nano-dollars, rounded up once; prices are nano-dollars per million tokens.
"""

from dataclasses import dataclass

MILLION = 1_000_000
EXACT = 2**53  # Lua's numbers are doubles: integers are exact below this


@dataclass(frozen=True, slots=True)
class Amount:
    """So many tokens at such a cost (nano-dollars)."""

    tokens: int = 0
    cost: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.tokens + other.tokens, self.cost + other.cost)

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(self.tokens - other.tokens, self.cost - other.cost)


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that a call may use: a fixed prompt part, and output of which less may be granted.

    The cost of `o` output tokens is `prompt.cost + ceil(o * output_price / 1,000,000)`. What is granted is the largest
    multiple of `step` (the number of answers asked for, which share it evenly) from `minimum_output` to
    `output_tokens` that fits every limit. `minimum_output` left at None means that only the whole will do.
    Raises ValueError if the parts contradict each other, or are too large to be counted exactly.
    """

    prompt: Amount
    output_tokens: int = 0
    output_price: int = 0
    minimum_output: int | None = None
    step: int = 1

    def __post_init__(self) -> None:
        parts = (self.prompt.tokens, self.prompt.cost, self.output_tokens, self.output_price, self.least_output)
        if min(parts) < 0 or self.step < 1:
            raise ValueError("a bound has no negative parts")
        if self.output_tokens % self.step or self.least_output % self.step:
            raise ValueError("the output is a multiple of the step")
        if self.least_output > self.output_tokens:
            raise ValueError("the least output is not above the most")
        most = self.at(self.output_tokens)
        if max(most.cost, most.tokens, self.output_price) >= EXACT // 4:
            raise ValueError("a bound too large to be counted exactly")

    @property
    def least_output(self) -> int:
        """Give the least output that the call can do with."""
        return self.output_tokens if self.minimum_output is None else self.minimum_output

    def at(self, output: int) -> Amount:
        """Give the bound with so many output tokens."""
        cost = self.prompt.cost + -(-output * self.output_price // MILLION)
        return Amount(self.prompt.tokens + output, cost)

    def largest_output(self, tokens_left: int | None, cost_left: int | None) -> int | None:
        """Give the largest output that fits what is left (None: unlimited); None if not even the least fits."""
        output = self.output_tokens
        if tokens_left is not None:
            output = min(output, tokens_left - self.prompt.tokens)
        if cost_left is not None:
            output = min(output, self._affordable(cost_left - self.prompt.cost))
        output -= output % self.step
        return output if output >= self.least_output else None

    def _affordable(self, cost: int) -> int:
        if cost < 0:
            return -1
        return cost * MILLION // self.output_price if self.output_price else self.output_tokens
