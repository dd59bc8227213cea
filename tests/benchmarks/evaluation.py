"""The bound against the bare network forwards that it needs, and sample metrics as their input grows.

    python tests/benchmarks/evaluation.py --tokens 60000
    python tests/benchmarks/evaluation.py --tokens 20000 --vocab 50257 --layers 6 --width 512 --heads 8

The forwards of the ratio are made by a stand-in for the method that calls trunk and head on all positions
of the clean canvas, as often, in the same process and batch by batch in turn.
"""

import argparse
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

METHODS = {each.kind: each for each in (Autoregressive(), Mdlm(), Sedd(), Udlm(), Gidd())}
LENGTH, BATCH = 256, 16
ESTIMATOR = Likelihood(strata=1, draws=1)


def clock(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.inference_mode()
def forward(net: Any, text: Canvas) -> None:
    zero = torch.full((text.shape[0], 1), 0.5, dtype=torch.float64)
    net.head(net.trunk(text.tokens, zero, text.condition))


def bound(method: Any, shape: Transformer, vocab: int, tokens: int) -> None:
    """Batches in turn: one of bare forwards, one of the bound; a first of each is not counted.

    The ratio is the median of the batches', so that what else a machine does at times does not enter.
    """
    torch.manual_seed(0)
    net = method.network(shape, vocab).eval()
    ours: list[float] = []
    bare: list[float] = []
    for start in range(0, tokens // LENGTH, BATCH):
        text = canvas(torch.randint(0, vocab, (BATCH, LENGTH)), first_row=start)
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    given = parser.parse_args()
    shape = Transformer(layers=given.layers, width=given.width, heads=given.heads)
    for name in given.methods:
        bound(METHODS[name], shape, given.vocab, given.tokens)
    for training in (2**21, 2**23, 2**24):
        metrics(training)


if __name__ == "__main__":
    main()
