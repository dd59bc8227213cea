"""A probabilistic grammar, sentence after sentence: long-range structure with an exact entropy.

The grammar must be readable from left to right with one token of look-ahead: the alternatives of a head
begin with different tokens, and none is empty. Then the stack of symbols still to come is known from the
tokens so far, and by the chain rule

    H(X_1..X_L) = sum over i of  sum over stacks of  p_i(stack) H(next token | top of the stack),

propagated forward over the stacks that can occur. Sentences are independent, so the entropy rate is the
entropy of a sentence over its expected length; both are linear equations in the heads, also for recursive
grammars.
"""

from collections import defaultdict
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from pydantic import Field, model_validator
from torch import Tensor

from discdiff.data.probabilities import entropy_of
from discdiff.noise import Noise, Stream
from discdiff.types import DiscdiffError, Value

_MOST_STACKS = 2**16

Stack = tuple[str, ...]


class Rule(Value, frozen=True):
    """`head` may become `body`, with probability proportional to `weight` among its rules."""

    head: str
    body: Annotated[tuple[str, ...], Field(min_length=1)]
    weight: Annotated[float, Field(gt=0)] = 1.0


class Choice(NamedTuple):
    """A head's next token, its probability, and what is still to come of the head after it."""

    token: str
    probability: float
    rest: Stack


class Grammar(Value, frozen=True):
    """Sentences derived from `start`, one after another; symbols that head no rule are the tokens."""

    kind: Literal["grammar"] = "grammar"
    rules: tuple[Rule, ...]
    start: str = "S"

    @model_validator(mode="after")
    def _can_be_read(self) -> "Grammar":
        if self.start not in {rule.head for rule in self.rules}:
            raise ValueError(f"no rule has the start symbol {self.start!r} as its head")
        for head, choices in self._choices.items():
            tokens = [choice.token for choice in choices]
            if len(set(tokens)) < len(tokens):
                raise ValueError(
                    f"alternatives of {head!r} begin with the same token; make their first tokens differ"
                )
        if max(abs(np.linalg.eigvals(self._expected))) >= 1 - 1e-9:
            raise ValueError("sentences do not end with probability 1; give recursive rules less weight")
        return self

    @property
    def vocab(self) -> int:
        return len(self.tokens)

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The terminal symbols by id, sorted."""
        heads = {rule.head for rule in self.rules}
        return tuple(sorted({symbol for rule in self.rules for symbol in rule.body} - heads))

    @cached_property
    def _choices(self) -> dict[str, tuple[Choice, ...]]:
        """What may come next of each symbol; a token is its own only choice."""
        totals: dict[str, float] = defaultdict(float)
        for rule in self.rules:
            totals[rule.head] += rule.weight
        known: dict[str, tuple[Choice, ...]] = {token: (Choice(token, 1.0, ()),) for token in self.tokens}

        def expand(symbol: str, above: Stack) -> tuple[Choice, ...]:
            if symbol in above:
                raise ValueError(f"{symbol!r} begins with itself; let each rule begin with something else")
            if symbol not in known:
                known[symbol] = tuple(
                    Choice(
                        first.token,
                        first.probability * rule.weight / totals[symbol],
                        first.rest + rule.body[1:],
                    )
                    for rule in self.rules
                    if rule.head == symbol
                    for first in expand(rule.body[0], (*above, symbol))
                )
            return known[symbol]

        for rule in self.rules:
            expand(rule.head, ())
        return known

    @cached_property
    def _expected(self) -> np.ndarray:
        """How many of each symbol are expected to be left of each symbol after its first token. `[N, N]`"""
        index = {symbol: i for i, symbol in enumerate(self._choices)}
        table = np.zeros((len(index), len(index)))
        for symbol, choices in self._choices.items():
            for choice in choices:
                for left in choice.rest:
                    table[index[symbol], index[left]] += choice.probability
        return table

    def _per_sentence(self, per_symbol: np.ndarray) -> float:
        """The expected sum, over a sentence, of a number per symbol that is opened."""
        totals = np.linalg.solve(np.eye(len(per_symbol)) - self._expected, per_symbol)
        return float(totals[list(self._choices).index(self.start)])

    @cached_property
    def _entropies(self) -> dict[str, float]:
        """Entropy of the next token when each symbol is on top."""
        return {
            symbol: float(entropy_of(np.array([choice.probability for choice in choices])))
            for symbol, choices in self._choices.items()
        }

    def entropy(self, length: int) -> float:
        """H of the first `length` tokens in nats.

        Raises DiscdiffError if more than 65,536 stacks can occur.
        """
        stacks: dict[Stack, float] = {(): 1.0}
        total = 0.0
        for _ in range(length):
            if len(stacks) > _MOST_STACKS:
                raise DiscdiffError(
                    f"the entropy of {length} tokens takes more than {_MOST_STACKS} stacks; ask for fewer"
                )
            following: dict[Stack, float] = defaultdict(float)
            for stack, p in stacks.items():
                top, *below = stack or (self.start,)
                total += p * self._entropies[top]
                for choice in self._choices[top]:
                    following[choice.rest + tuple(below)] += p * choice.probability
            stacks = following
        return total

    @property
    def entropy_rate(self) -> float:
        """Entropy of a sentence over its expected length, in nats per token."""
        entropies = np.array([self._entropies[symbol] for symbol in self._choices])
        return self._per_sentence(entropies) / self._per_sentence(np.ones(len(entropies)))

    def log_prob(self, tokens: Int[Tensor, "B L"]) -> Float64[Tensor, "B"]:
        """log p of each row as the beginning of a stream, in nats; -inf for what the grammar can't say."""
        rows = [self._log_prob(row) for row in tokens.tolist()]
        return torch.tensor(rows, dtype=torch.float64)

    def _log_prob(self, row: list[int]) -> float:
        stack: Stack = ()
        total = 0.0
        for token in row:
            top, *below = stack or (self.start,)
            found = [choice for choice in self._choices[top] if choice.token == self.tokens[token]]
            if not found:
                return -np.inf
            total += np.log(found[0].probability)
            stack = found[0].rest + tuple(below)
        return total

    def sample(self, noise: Noise, length: int) -> Int64[Tensor, "B L"]:
        """The first tokens of a stream for each row of the noise."""
        index = {token: i for i, token in enumerate(self.tokens)}
        rows = [
            [index[token] for token in self._sample(row)]
            for row in noise.uniform(Stream.DATA, length).tolist()
        ]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), length)

    def _sample(self, uniforms: list[float]) -> list[str]:
        stack: Stack = ()
        said: list[str] = []
        for u in uniforms:
            top, *below = stack or (self.start,)
            choices = self._choices[top]
            cdf = np.cumsum([choice.probability for choice in choices])
            choice = choices[min(int(np.searchsorted(cdf, u * cdf[-1], side="right")), len(choices) - 1)]
            said.append(choice.token)
            stack = choice.rest + tuple(below)
        return said
