"""Tables of probabilities: their checks, their entropy, the distribution that a transition leaves alone."""

import numpy as np

from discdiff.types import DiscdiffError

Row = tuple[float, ...]
Table = tuple[Row, ...]

_TOLERANCE = 1e-9


def check_rows(table: Table, columns: int) -> Table:
    """The table, if each row is a distribution over so many columns. Raises ValueError."""
    if not table or any(len(row) != columns for row in table):
        raise ValueError(f"every row must have {columns} entries, and there must be one at least")
    values = np.array(table)
    if not (values >= 0).all() or (abs(values.sum(1) - 1) > _TOLERANCE).any():
        raise ValueError("every row must be a distribution: nothing negative, sum 1")
    return table


def entropy_of(p: np.ndarray) -> np.ndarray:
    """Entropy in nats along the last axis. `[..., V] -> [...]`"""
    return np.asarray(-(p * np.log(np.where(p > 0, p, 1))).sum(-1))


def stationary(transition: np.ndarray) -> np.ndarray:
    """The one distribution with p T = p. `[S, S] -> [S]`

    Raises DiscdiffError if there are several: the chain then falls into parts that never meet.
    """
    states = len(transition)
    system = np.vstack([transition.T - np.eye(states), np.ones(states)])
    if np.linalg.matrix_rank(system, tol=1e-10) < states:
        raise DiscdiffError(
            "the chain has more than one stationary distribution; let all states reach one another"
        )
    target = np.append(np.zeros(states), 1.0)
    p = np.linalg.lstsq(system, target, rcond=None)[0].clip(0)
    return p / p.sum()
