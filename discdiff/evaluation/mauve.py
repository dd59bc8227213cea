"""MAUVE: the area under the divergence frontier of two sets of text. Pillutla et al. 2021, arXiv:2102.01454.

Texts become features (a judge's last hidden state), features become clusters, clusters two histograms p
and q. The frontier is traced by mixtures r = lambda p + (1 - lambda) q,

    ( exp(-c KL(q || r)), exp(-c KL(p || r)) ),    c = 5,

from (0, 1) to (1, 0); MAUVE is the area under it: 1 if p = q, and 1 / binomial(2c, c) = 0.004 if they
share no cluster. The clustering follows the paper: rows scaled to unit length, principal components that
hold 90 % of the variance, k-means with one cluster to ten texts, the best of five starts. Values depend on
judge, number of texts, their length and clusters: they may be compared only where all four agree.
"""

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from discdiff.types import DiscdiffError, Value


class Mauve(Value, frozen=True):
    """How MAUVE is computed. `scaling` is c; `clusters` None means one to ten texts of the smaller set, at
    least two.
    """

    scaling: float = Field(default=5.0, gt=0)
    clusters: int | None = Field(default=None, ge=2)
    variance: float = Field(default=0.9, gt=0, le=1)
    starts: int = Field(default=5, ge=1)
    points: int = Field(default=25, ge=2)
    seed: int = 0

    def area(self, p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
        """Area under the divergence frontier of two histograms. `[K], [K] -> (0, 1]`"""
        mix = np.linspace(1e-6, 1 - 1e-6, self.points)
        x = [math.exp(-self.scaling * _kl(q, a * p + (1 - a) * q)) for a in mix]
        y = [math.exp(-self.scaling * _kl(p, a * p + (1 - a) * q)) for a in mix]
        x, y = np.array([1.0, *x, 0.0]), np.array([0.0, *y, 1.0])
        return float(((x[:-1] - x[1:]) * (y[:-1] + y[1:])).sum() / 2)

    def compare(self, p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
        """MAUVE of two sets of features. `[N, D], [M, D] -> (0, 1]`

        Raises `DiscdiffError` if a set has fewer than two texts or features are not of one judge.
        """
        if min(len(p), len(q)) < 2 or p.shape[1] != q.shape[1]:
            raise DiscdiffError(
                f"MAUVE was given features {p.shape} and {q.shape}; it needs two texts or more in each set, "
                "of one judge"
            )
        clusters = self.clusters or max(2, round(min(len(p), len(q)) / 10))
        points = _reduced(np.concatenate([p, q]).astype(np.float64), self.variance)
        labels = kmeans(points, clusters, starts=self.starts, seed=self.seed)
        counts = [np.bincount(part, minlength=clusters) for part in (labels[: len(p)], labels[len(p) :])]
        return self.area(counts[0] / len(p), counts[1] / len(q))

    def warnings(self, count: int, length: int) -> list[str]:
        """What a reader must know about the value: too few texts, or texts too short, for it to be "
        "compared."""
        out: list[str] = []
        if count < 1000:
            out.append(
                f"MAUVE of {count} texts is noisy and biased: compare only sets of this size, and take "
                "5,000 for a result"
            )
        if length < 128:
            out.append(
                f"MAUVE of {length}-token texts sees little: it was validated on texts of hundreds of tokens"
            )
        return out


def _kl(p: NDArray[np.float64], r: NDArray[np.float64]) -> float:
    held = p > 0
    return float((p[held] * np.log(p[held] / r[held])).sum())


def _reduced(points: NDArray[np.float64], variance: float) -> NDArray[np.float64]:
    """Rows of unit length in the principal components that hold this share of the variance. `[N, D] -> [N,
    d]`
    """
    points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    points = points - points.mean(0)
    values, vectors = np.linalg.eigh(points.T @ points)
    held = np.cumsum(values[::-1]) / max(values.sum(), 1e-300)
    keep = min(int(np.searchsorted(held, variance)) + 1, points.shape[1])
    return points @ vectors[:, ::-1][:, :keep]


def kmeans(points: NDArray[np.float64], clusters: int, *, starts: int, seed: int) -> NDArray[np.int64]:
    """Lloyd's algorithm from k-means++ seeds, the tightest of several starts. `[N, d] -> [N]`"""
    generator = np.random.default_rng(seed)
    runs = [_lloyd(points, _spread(points, clusters, generator)) for _ in range(starts)]
    return min(runs, key=lambda run: run[1])[0]


def _spread(
    points: NDArray[np.float64], clusters: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """k-means++ (Arthur and Vassilvitskii 2007): each next center drawn in proportion to its squared
    distance. -> [K, d]
    """
    chosen = [int(generator.integers(len(points)))]
    nearest = ((points - points[chosen[0]]) ** 2).sum(1)
    for _ in range(1, clusters):
        cumulated = np.cumsum(nearest)
        at = int(np.searchsorted(cumulated, generator.random() * cumulated[-1], side="right"))
        chosen.append(min(at, len(points) - 1))
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(1))
    return points[chosen]


def _lloyd(points: NDArray[np.float64], centers: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    labels, inertia = _assign(points, centers)
    for _ in range(500):
        counts = np.bincount(labels, minlength=len(centers))
        sums = np.zeros_like(centers)
        np.add.at(sums, labels, points)
        centers = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centers)
        moved, inertia = _assign(points, centers)
        if (moved == labels).all():
            break
        labels = moved
    return labels, inertia


def _assign(points: NDArray[np.float64], centers: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """Each point's nearest center and the summed squared distance, 4,096 points at a time."""
    labels, inertia = np.empty(len(points), np.int64), 0.0
    square = (centers**2).sum(1)
    for start in range(0, len(points), 4096):
        part = points[start : start + 4096]
        far = square - 2 * part @ centers.T
        labels[start : start + 4096] = far.argmin(1)
        inertia += float((far.min(1) + (part**2).sum(1)).sum())
    return labels, inertia
