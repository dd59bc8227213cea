"""What samplers cost beyond the network, and first hitting and cached paths against plain ancestral.

    python tests/benchmarks/sampling.py
    python tests/benchmarks/sampling.py --steps 3 --cases "mdlm ancestral" "mdlm first hitting"
    python tests/benchmarks/sampling.py --length 64 --vocab 5000 --nfe 8 32 --width 64 --layers 2

The first is L = 1,024, V = 50,257, NFE 32, 128 and 1,024, batch 1 and 16. The second measures parts of each
path, evenly apart, and scales them to all; its lines say "measured" beside "nfe". Of

    a grid            steps from tokens noised to the step's time; where inputs are kept, the step before is
                      taken first, unmeasured
    first hitting,    steps with so many random positions given as are filled by then, which to mask noise is
    entropy budget    the same
    blocks            blocks after so many random ones that are done
    left to right     eight tokens each time, after a random prefix of so many

Of one run it is told how long the network took, trunk and head, so a busy machine slows both alike:

    overhead  =  seconds / seconds in the network  -  1.

Of smaller batches up to four times as many parts are measured, since they vary more.

"bare" are forwards of the same number of sequences, trunk and head at all positions: what the paper counts
as an evaluation. A sampler may be faster than that, since it asks the head only of what it draws. Networks
are as they are made, with laws that are uniform: an entropy budget then fills one token an evaluation, its
worst.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from discdiff.methods import Autoregressive, Block, Mdlm, Udlm
from discdiff.networks import Transformer
from discdiff.noise import Noise
from discdiff.samplers import Blocks, EntropyBudget, FirstHitting, LeftToRight, Sampler, Unchanged
from discdiff.types import Canvas, Condition, canvas

HEAD_ROWS = 333
"""Positions that the bare head reads at once, as samplers let it."""
TOKENS = 8
"""Tokens that are drawn from left to right each time."""
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
    """Draw once, or in parts, and print a line."""
    torch.manual_seed(0)
    shape = Transformer(layers=given.layers, width=given.width, heads=given.heads, time=False)
    net = method.network(shape, given.vocab).to(given.device).eval()
    blank = canvas(torch.zeros(batch, given.length, dtype=torch.int64, device=given.device))
    if given.device == "cuda":
        forward(net, blank)
    with Watch(net, given.device) as watch:
        parts = part_of(method, sampler) if given.steps else whole
        count = given.steps * min(4, max(given.batch) // batch)
        measured, scale = parts(method, net, blank, sampler, count, watch)
    if (method.kind, batch) not in BARE:
        BARE[method.kind, batch] = timed(lambda: forward(net, blank), given.device)
    bare, network = BARE[method.kind, batch], sum(watch.seconds.values())
    line = {
        "case": name,
        "batch": batch,
        "nfe": nfe,
        "measured": measured,
        "evaluations": round(watch.rows / batch * scale, 1),
        "seconds": round(watch.total, 3),
        "trunk": round(watch.seconds["trunk"], 3),
        "head": round(watch.seconds["head"], 3),
        "overhead": round(watch.total / network - 1, 4) if network else None,
        "samples_per_second": float(f"{batch / (watch.total * scale):.3g}"),
        "bare_samples_per_second": float(f"{batch / (bare * nfe):.3g}"),
    }
    print(json.dumps(line), flush=True)


class Watch:
    """Adds up the time of what is measured, and of the trunk and the head of a network within it."""

    def __init__(self, net: Any, device: str) -> None:
        self.parts: dict[str, nn.Module] = {"trunk": net.trunk, "head": net.head}
        self.seconds = dict.fromkeys(self.parts, 0.0)
        self.device, self.total, self.rows, self.running = device, 0.0, 0, False

    def __enter__(self) -> "Watch":
        self.handles = [
            handle
            for name, part in self.parts.items()
            for handle in (
                part.register_forward_pre_hook(
                    lambda _, given, name=name: self._add(name, -1, len(given[0]))
                ),
                part.register_forward_hook(lambda *_, name=name: self._add(name, 1, 0)),
            )
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def start(self) -> None:
        self.total -= self._now()
        self.running = True

    def stop(self) -> None:
        self.total += self._now()
        self.running = False

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _add(self, name: str, sign: int, rows: int) -> None:
        if self.running:
            self.seconds[name] += sign * self._now()
            self.rows += rows if name == "trunk" else 0


Measured = tuple[int, float]
"""How many parts were measured, and by what to multiply them for a whole draw."""


def whole(method: Any, net: Any, blank: Canvas, sampler: Any, count: int, watch: Watch) -> Measured:
    """A draw from the first step to the last."""
    watch.start()
    method.sample(net, blank, sampler, Noise(0))
    watch.stop()
    return 1, 1.0


def part_of(method: Any, sampler: Any) -> Callable[..., Measured]:
    """What measures parts of such a path."""
    if isinstance(sampler, Blocks):
        return some_blocks
    if isinstance(sampler, LeftToRight):
        return some_tokens
    return some_choices if sampler.order or isinstance(sampler.reverse, FirstHitting) else some_steps


def some_steps(method: Any, net: Any, blank: Canvas, sampler: Any, count: int, watch: Watch) -> Measured:
    """Steps of a grid."""
    noise, count = Noise(0).on(blank.rows), min(count, sampler.steps)
    times = sampler.times()
    for index in evenly(sampler.steps, count):
        step = sampler.step(sampler.predictor(method, net, blank))
        first = max(0, index - 1) if sampler.cache else index
        t = torch.full((len(blank.tokens), 1), times[first], dtype=torch.float64, device=blank.tokens.device)
        x = method.corrupt(blank.with_tokens(tokens(blank, net.vocab)), t, net.vocab, noise)
        with torch.no_grad():
            if first < index:
                x = step.draw(x, times[index], times[first], noise.at(first))
            watch.start()
            step.draw(x, times[index + 1], times[index], noise.at(index))
            watch.stop()
    return count, sampler.steps / count


def some_choices(method: Any, net: Any, blank: Canvas, sampler: Any, count: int, watch: Watch) -> Measured:
    """Steps of paths that choose tokens, a token each."""
    length = blank.shape[1]
    for filled in evenly(length, count):
        order = torch.rand(blank.shape, device=blank.tokens.device).argsort(-1)
        prompt = replace(blank, tokens=tokens(blank, net.vocab), free=order >= filled)
        between(0, 1, method, net, prompt, sampler, watch)
    return count, length / count


def some_blocks(method: Any, net: Any, blank: Canvas, sampler: Any, count: int, watch: Watch) -> Measured:
    """Blocks, and what it takes to keep each."""
    blocks, states = blank.shape[1] // sampler.size, sampler.inside.steps + 1
    for done in evenly(blocks, count):
        prompt = after(blank, done * sampler.size, net.vocab)
        between(0, states, method, net, prompt, sampler, watch)
    return count, blocks / count


def some_tokens(method: Any, net: Any, blank: Canvas, sampler: Any, count: int, watch: Watch) -> Measured:
    """Tokens from left to right, but for the first after a prefix, which reads it."""
    length = blank.shape[1]
    for done in evenly(length, count):
        few = min(TOKENS, length - done - 1)
        between(1, 1 + few, method, net, after(blank, done, net.vocab), sampler, watch)
    return count * few, length / (count * few)


def evenly(whole: int, count: int) -> Iterator[int]:
    """`count` of 0 to `whole` - 1, in the middles of as many equal parts."""
    return ((2 * number + 1) * whole // (2 * count) for number in range(count))


def tokens(blank: Canvas, vocab: int) -> torch.Tensor:
    return torch.randint(vocab, blank.shape, device=blank.tokens.device)


def after(blank: Canvas, done: int, vocab: int) -> Canvas:
    """A canvas whose first positions are given."""
    free = torch.arange(blank.shape[1], device=blank.tokens.device) >= done
    return replace(blank, tokens=tokens(blank, vocab), free=free.expand(blank.shape))


def between(first: int, last: int, method: Any, net: Any, prompt: Canvas, sampler: Any, watch: Watch) -> None:
    """Measure a draw from the state of one number to that of another, and leave it."""
    seen = -1

    def observe(t: Any, x: torch.Tensor) -> None:
        nonlocal seen
        seen += 1
        if seen == last:
            watch.stop()
            raise StopIteration
        if seen == first:
            watch.start()

    with contextlib.suppress(StopIteration):
        method.sample(net, prompt, sampler, Noise(0), observe)
    if watch.running:
        watch.stop()


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
    parser.add_argument(
        "--steps", type=int, default=0, help="measure so many parts of each path; 0: all of it"
    )
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
