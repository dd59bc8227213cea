"""The bound against the bare network forwards that it needs, and sample metrics as their input grows.

    python tests/benchmarks/evaluation.py [tokens]

The forwards of the ratio are made by a stand-in for the method that calls trunk and head on all positions
of the clean canvas, as often, in the same process and batch by batch in turn.
"""

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch

from discdiff.evaluation.likelihood import Likelihood
from discdiff.evaluation.novelty import matches
from discdiff.evaluation.quality import quality
from discdiff.evaluation.sequences import sequences
from discdiff.methods import Autoregressive, Gidd, Mdlm, Sedd, Udlm
from discdiff.networks import Transformer
from discdiff.types import Canvas, canvas

VOCAB, LENGTH, BATCH = 8192, 256, 16
ESTIMATOR = Likelihood(strata=1, draws=1)


def clock(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.inference_mode()
def forward(net: Any, text: Canvas) -> None:
    zero = torch.full((text.shape[0], 1), 0.5, dtype=torch.float64)
    net.head(net.trunk(text.tokens, zero, text.condition))


def bound(method: Any, tokens: int) -> None:
    """Batches in turn: one of bare forwards, one of the bound; a first of each is not counted.

    The ratio is the median of the batches', so that what else a machine does at times does not enter.
    """
    torch.manual_seed(0)
    net = method.network(Transformer(layers=4, width=256, heads=4), VOCAB).eval()
    ours: list[float] = []
    bare: list[float] = []
    for start in range(0, tokens // LENGTH, BATCH):
        text = canvas(torch.randint(0, VOCAB, (BATCH, LENGTH)), first_row=start)
        if start == 0:
            forward(net, text)
            ESTIMATOR.measure(method, net, [text])
        bare.append(clock(lambda text=text: forward(net, text)))
        ours.append(clock(lambda text=text: ESTIMATOR.measure(method, net, [text])))
    speed = len(ours) * BATCH * LENGTH / sum(ours)
    ratio = median(mine / theirs for mine, theirs in zip(ours, bare, strict=True))
    print(f"{method.kind:16} bound {speed:9,.0f} tokens/s   {ratio:5.2f} x the bare forwards", flush=True)


def metrics(training: int) -> None:
    """Time and memory of the sample metrics of 256 samples beside a training text."""
    draw, process = np.random.default_rng(0), psutil.Process()
    samples = sequences(draw.integers(0, 96, (256, 512)), 96)
    before = process.memory_info().rss
    stream = (draw.integers(0, 96, 2**20) for _ in range(training // 2**20))
    plain = clock(lambda: quality(samples))
    found = clock(lambda: matches(samples, stream))
    grown = (process.memory_info().rss - before) / 2**20
    print(
        f"{training / 1e6:6.1f} M training tokens: n-grams, entropy, self-BLEU {plain:.2f} s, novelty "
        f"{found:.2f} s "
        f"({training / found / 1e6:.2f} M tokens/s), memory +{grown:.0f} MiB"
    )


if __name__ == "__main__":
    asked = int(float(sys.argv[1])) if len(sys.argv) > 1 else 2**20
    for each in (Autoregressive(), Mdlm(), Udlm(), Gidd(), Sedd()):
        bound(each, asked)
    for size in (2**21, 2**23, 2**24):
        metrics(size)
