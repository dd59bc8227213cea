"""A Markov chain: the entropy of any number of tokens in closed form.

    H(X_1..X_L) = H(p_1) + sum over i < L of  sum over a of  p_i(a) H(T(. | a)),      p_{i+1} = p_i T

and the entropy rate is the same inner sum under the stationary distribution.
"""

from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from pydantic import field_validator, model_validator
from torch import Tensor

from discdiff.data.probabilities import Row, Table, check_rows, entropy_of, stationary
from discdiff.noise import Noise, Stream, categorical
from discdiff.types import Value


class MarkovChain(Value, frozen=True):
    """x_1 from `initial`, then x_{i+1} from row x_i of `transition`, `[V, V]`.

    Without `initial` the chain starts in its stationary distribution.
    """

    kind: Literal["markov"] = "markov"
    transition: Table
    initial: Row | None = None

    @field_validator("transition")
    @classmethod
    def _stochastic(cls, table: Table) -> Table:
        return check_rows(table, columns=len(table))

    @model_validator(mode="after")
    def _initial_fits(self) -> "MarkovChain":
        if self.initial is not None:
            check_rows((self.initial,), columns=self.vocab)
        return self

    @classmethod
    def random(cls, vocab: int, seed: int, contrast: float = 1.0) -> "MarkovChain":
        """A chain whose log-weights are normal with standard deviation `contrast`, row by row."""
        logits = Noise(seed, rows=torch.arange(vocab)).normal(Stream.DATA, vocab).double() * contrast
        return cls(transition=tuple(map(tuple, logits.softmax(-1).tolist())))

    @property
    def vocab(self) -> int:
        return len(self.transition)

    @cached_property
    def stationary(self) -> np.ndarray:
        """The distribution that a step leaves alone. `[V]`"""
        return stationary(np.array(self.transition))

    @cached_property
    def _start(self) -> np.ndarray:
        return self.stationary if self.initial is None else np.array(self.initial)

    def entropy(self, length: int) -> float:
        """H of `length` tokens in nats, by the chain rule."""
        if length == 0:
            return 0.0
        table = np.array(self.transition)
        steps = entropy_of(table)
        p, total = self._start, float(entropy_of(self._start))
        for _ in range(length - 1):
            total += float(p @ steps)
            p = p @ table
        return total

    @property
    def entropy_rate(self) -> float:
        """The limit of `entropy(L) / L`, in nats per token."""
        return float(self.stationary @ entropy_of(np.array(self.transition)))

    def log_prob(self, tokens: Int[Tensor, "B L"]) -> Float64[Tensor, "B"]:
        """log p of each row, in nats."""
        first = torch.from_numpy(self._start).log()[tokens[:, 0]]
        steps = torch.tensor(self.transition, dtype=torch.float64).log()
        return first + steps[tokens[:, :-1], tokens[:, 1:]].sum(-1)

    def sample(self, noise: Noise, length: int) -> Int64[Tensor, "B L"]:
        """A sequence for each row of the noise."""
        u = noise.uniform(Stream.DATA, length)
        steps = torch.tensor(self.transition, dtype=torch.float64).log()
        tokens = torch.empty(u.shape, dtype=torch.int64)
        log_p = torch.from_numpy(self._start).log().expand(len(u), -1)
        for i in range(length):
            tokens[:, i] = categorical(log_p, u[:, i])
            log_p = steps[tokens[:, i]]
        return tokens
