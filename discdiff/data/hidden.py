"""A hidden Markov model: exact entropy by the forward algorithm over the tree of beliefs.

The belief is the distribution of the hidden state given the tokens so far. By the chain rule

    H(X_1..X_L) = sum over i of  E[ H(p(x_i | belief)) ],

where the expectation is over the beliefs that i - 1 tokens can lead to, each with its probability. Beliefs
that agree to 12 decimals are one: a model that forgets its past, or whose tokens tell its state, has few,
and entropy is exact to rounding for any length. If there are more than 131,072 the entropy is refused,
not estimated.

The entropy rate lies between H(X_n | X_1..X_{n-1}, Z_1) and H(X_n | X_1..X_{n-1}), which meet as n grows
(Cover and Thomas, Elements of Information Theory, on functions of Markov chains).
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from pydantic import field_validator, model_validator
from torch import Tensor

from discdiff.data.probabilities import Row, Table, check_rows, entropy_of, stationary
from discdiff.noise import Noise, Stream, categorical
from discdiff.types import DiscdiffError, Value

_MOST_BELIEFS = 2**17
_DECIMALS = 12
_GAP = 1e-9


class HiddenMarkov(Value, frozen=True):
    """Hidden z_1 from `initial`, z_{i+1} from row z_i of `transition`; x_i from row z_i of `emission`.

    `transition` is `[S, S]`, `emission` `[S, V]`.

    Without `initial` the hidden chain starts in its stationary distribution.
    """

    kind: Literal["hidden-markov"] = "hidden-markov"
    transition: Table
    emission: Table
    initial: Row | None = None

    @field_validator("transition")
    @classmethod
    def _square(cls, table: Table) -> Table:
        return check_rows(table, columns=len(table))

    @field_validator("emission")
    @classmethod
    def _stochastic(cls, table: Table) -> Table:
        return check_rows(table, columns=len(table[0]) if table else 0)

    @model_validator(mode="after")
    def _fits(self) -> "HiddenMarkov":
        states = len(self.transition)
        if len(self.emission) != states or (self.initial is not None and len(self.initial) != states):
            raise ValueError(f"emission and initial must have a row and an entry for each of {states} states")
        if self.initial is not None:
            check_rows((self.initial,), columns=states)
        return self

    @property
    def vocab(self) -> int:
        return len(self.emission[0])

    @cached_property
    def stationary(self) -> np.ndarray:
        """The distribution of the hidden state that a step leaves alone. `[S]`"""
        return stationary(np.array(self.transition))

    @cached_property
    def _start(self) -> np.ndarray:
        return self.stationary if self.initial is None else np.array(self.initial)

    def entropy(self, length: int) -> float:
        """H of `length` tokens in nats. Raises DiscdiffError if it takes more than 131,072 beliefs."""
        steps = self._conditional(self._start[None], np.ones(1))
        return sum((next(steps) for _ in range(length)), 0.0)

    @cached_property
    def entropy_rate(self) -> float:
        """The limit of `entropy(L) / L` in nats per token, to within 1e-9, which its two bounds prove.

        Raises DiscdiffError if 131,072 beliefs do not bring the bounds that close.
        """
        upper = self._conditional(self.stationary[None], np.ones(1))
        lower = self._conditional(np.eye(len(self.transition)), self.stationary)
        while True:
            high, low = next(upper), next(lower)
            if high - low <= _GAP:
                return (high + low) / 2

    def _conditional(self, beliefs: np.ndarray, weights: np.ndarray) -> Iterator[float]:
        """H(x_i | the starting belief and the tokens before) for i = 1, 2, ..."""
        transition, emission = np.array(self.transition), np.array(self.emission)
        while True:
            beliefs, weights = _merged(beliefs, weights)
            if len(beliefs) > _MOST_BELIEFS:
                raise DiscdiffError(
                    f"the entropy of this hidden Markov model takes more than {_MOST_BELIEFS} beliefs; "
                    "ask for fewer tokens, or choose a model that forgets faster"
                )
            p = beliefs @ emission
            yield float(weights @ entropy_of(p))
            joint = np.einsum("bs,sv,sz->bvz", beliefs, emission, transition)
            possible = p > 0
            beliefs, weights = joint[possible] / p[possible][:, None], (weights[:, None] * p)[possible]

    def log_prob(self, tokens: Int[Tensor, "B L"]) -> Float64[Tensor, "B"]:
        """log p of each row in nats, by the forward algorithm."""
        transition, emission = self._tables
        belief = torch.from_numpy(self._start).expand(len(tokens), -1)
        total = torch.zeros(len(tokens), dtype=torch.float64)
        for column in tokens.unbind(1):
            joint = belief * emission[:, column].T
            p = joint.sum(-1, keepdim=True)
            total = total + p[:, 0].log()
            belief = joint / p.clamp_min(torch.finfo(torch.float64).tiny) @ transition
        return total

    def sample(self, noise: Noise, length: int) -> Int64[Tensor, "B L"]:
        """A sequence for each row of the noise."""
        u, v = noise.uniform(Stream.DATA, length), noise.uniform(Stream.AUXILIARY, length)
        transition, emission = (table.log() for table in self._tables)
        tokens = torch.empty(u.shape, dtype=torch.int64)
        log_p = torch.from_numpy(self._start).log().expand(len(u), -1)
        for i in range(length):
            state = categorical(log_p, u[:, i])
            tokens[:, i] = categorical(emission[state], v[:, i])
            log_p = transition[state]
        return tokens

    @property
    def _tables(self) -> tuple[Tensor, Tensor]:
        return (
            torch.tensor(self.transition, dtype=torch.float64),
            torch.tensor(self.emission, dtype=torch.float64),
        )


def _merged(beliefs: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal beliefs as one, with their weights added."""
    _, first, group = np.unique(beliefs.round(_DECIMALS), axis=0, return_index=True, return_inverse=True)
    return beliefs[first], np.bincount(group.ravel(), weights, len(first))
