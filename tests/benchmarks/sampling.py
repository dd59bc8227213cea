"""What samplers cost beyond the network, and first hitting and cached paths against plain ancestral.

    python tests/benchmarks/sampling.py
    python tests/benchmarks/sampling.py --steps 3 --cases "mdlm ancestral" "mdlm first hitting"
    python tests/benchmarks/sampling.py --length 64 --vocab 5000 --nfe 8 32 --width 64 --layers 2

The first is L = 1,024, V = 50,257, NFE 32, 128 and 1,024, batch 1 and 16. The second measures three steps of
each path and scales them to all; its lines say "measured" beside "nfe". Of paths with a grid these are steps
evenly apart, from noised random tokens; of the others they are the first.

Of one run it is told how long the network took, trunk and head, so a busy machine slows both alike:

    overhead  =  seconds / seconds in the network  -  1.

"bare" are forwards of the same number of sequences, trunk and head at all positions: what the paper counts as
an evaluation. A sampler may be faster than that, since it asks the head only of what it draws.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from discdiff.methods import Autoregressive, Block, Mdlm, Udlm
from discdiff.networks import Transformer
from discdiff.noise import Noise
from discdiff.samplers import Blocks, EntropyBudget, FirstHitting, LeftToRight, Sampler, Unchanged
from discdiff.samplers.counting import counted
from discdiff.types import Canvas, Condition, canvas

HEAD_ROWS = 333
"""Positions that the bare head reads at once, as samplers let it."""
BARE: dict[tuple[str, int], float] = {}
"""Seconds of a forward, by method and batch."""


def main() -> None:
    given = arguments()
    print(
        json.dumps({**vars(given), "threads": torch.get_num_threads(), "torch": torch.__version__}),
        flush=True,
    )
    for batch in given.batch:
        for nfe in given.nfe:
            for case in stepped(nfe):
                if not given.cases or case[0] in given.cases:
                    report(*case, batch, nfe, given)
        for case in adaptive(given):
            if not given.cases or case[0] in given.cases:
                report(*case, batch, given.length, given)


def stepped(nfe: int) -> list[tuple[str, Any, Any]]:
    """Paths of so many steps."""
    return [
        ("mdlm ancestral", Mdlm(), Sampler(steps=nfe)),
        ("udlm ancestral", Udlm(), Sampler(steps=nfe)),
        ("udlm unchanged", Udlm(), Sampler(steps=nfe, cache=Unchanged())),
    ]


def adaptive(given: argparse.Namespace) -> list[tuple[str, Any, Any]]:
    """Paths of as many evaluations as they need, as many as positions at most."""
    block = Block(inner=Mdlm(), size=given.block)
    return [
        ("mdlm first hitting", Mdlm(), Sampler(reverse=FirstHitting())),
        ("mdlm entropy budget", Mdlm(), Sampler(order=EntropyBudget(nats=given.nats))),
        ("block cached", block, Blocks(size=given.block, inside=Sampler(steps=given.block))),
        ("autoregressive cached", Autoregressive(), LeftToRight()),
    ]


def report(name: str, method: Any, sampler: Any, batch: int, nfe: int, given: argparse.Namespace) -> None:
    """Draw once and print a line."""
    torch.manual_seed(0)
    shape = Transformer(layers=given.layers, width=given.width, heads=given.heads, time=False)
    net = method.network(shape, given.vocab).to(given.device).eval()
    blank = canvas(torch.zeros(batch, given.length, dtype=torch.int64, device=given.device))
    if given.device == "cuda":
        forward(net, blank)
    apart = bool(given.steps) and isinstance(sampler, Sampler) and name.endswith("ancestral")
    with counted(net, batch) as count, Watch(net, given.device) as watch:
        seconds, steps = (some if apart else draw)(method, net, blank, sampler, given)
    evaluations = count().double().mean().item()
    whole = nfe / steps if given.steps else 1.0
    if (method.kind, batch) not in BARE:
        BARE[method.kind, batch] = timed(lambda: forward(net, blank), given.device)
    bare = BARE[method.kind, batch]
    line = {
        "case": name,
        "batch": batch,
        "nfe": nfe,
        "measured": steps,
        "evaluations": round(evaluations * whole, 1),
        "seconds": round(seconds, 3),
        "trunk": round(watch.seconds["trunk"], 3),
        "head": round(watch.seconds["head"], 3),
        "overhead": round(seconds / sum(watch.seconds.values()) - 1, 4),
        "samples_per_second": float(f"{batch / (seconds * whole):.3g}"),
        "bare_samples_per_second": float(f"{batch / (bare * nfe):.3g}"),
    }
    print(json.dumps(line), flush=True)


def draw(method: Any, net: Any, blank: Canvas, sampler: Any, given: argparse.Namespace) -> tuple[float, int]:
    """Seconds of a draw, and its steps; no more than were asked for."""
    seen = -1

    def observe(t: Any, x: torch.Tensor) -> None:
        nonlocal seen
        seen += 1
        if given.steps and seen == given.steps:
            raise StopIteration

    def run() -> None:
        with contextlib.suppress(StopIteration):
            method.sample(net, blank, sampler, Noise(0), observe)

    seconds = timed(run, given.device)
    return seconds, max(seen, 1)


def some(method: Any, net: Any, blank: Canvas, sampler: Any, given: argparse.Namespace) -> tuple[float, int]:
    """Seconds of steps evenly apart, each from tokens at its noise, and how many steps these are."""
    predictor, times = sampler.predictor(method, net, blank), sampler.times()
    step, noise = sampler.step(predictor), Noise(0).on(blank.rows)
    count = min(given.steps, sampler.steps)
    seconds = 0.0
    for number in range(count):
        index = (2 * number + 1) * sampler.steps // (2 * count)
        t, s = times[index], times[index + 1]
        start = torch.full((len(blank.tokens), 1), t, dtype=torch.float64, device=blank.tokens.device)
        x_t = method.corrupt(blank, start, net.vocab, noise)
        with torch.no_grad():
            seconds += timed(lambda x=x_t, s=s, t=t, i=index: step.draw(x, s, t, noise.at(i)), given.device)
    return seconds, count


class Watch:
    """Adds up the time that the trunk and the head of a network take."""

    def __init__(self, net: Any, device: str) -> None:
        self.parts: dict[str, nn.Module] = {"trunk": net.trunk, "head": net.head}
        self.seconds = dict.fromkeys(self.parts, 0.0)
        self.device = device

    def __enter__(self) -> "Watch":
        self.handles = [
            handle
            for name, part in self.parts.items()
            for handle in (
                part.register_forward_pre_hook(lambda *_, name=name: self._add(name, -1)),
                part.register_forward_hook(lambda *_, name=name: self._add(name, 1)),
            )
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _add(self, name: str, sign: int) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.seconds[name] += sign * time.perf_counter()


@torch.no_grad()
def forward(net: Any, blank: Canvas) -> None:
    """One evaluation of the network at all positions, the head's a chunk at a time."""
    t = torch.full((len(blank.tokens), 1), 0.5, dtype=torch.float64, device=blank.tokens.device)
    for hidden in net.trunk(blank.tokens, t, Condition()).flatten(0, 1).split(HEAD_ROWS):
        net.head(hidden)


def timed(run: Callable[[], Any], device: str) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=50_257)
    parser.add_argument("--nfe", type=int, nargs="+", default=[32, 128, 1024])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--steps", type=int, default=0, help="measure so many steps of each path; 0: all")
    parser.add_argument("--cases", nargs="+", help="of the cases these only, by name")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--nats", type=float, default=1.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
