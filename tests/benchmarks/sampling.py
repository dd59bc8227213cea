"""Samples per second against the network's bare forwards of the same count, first hitting and cached paths
against plain ancestral.

    python tests/benchmarks/sampling.py
    python tests/benchmarks/sampling.py --length 64 --vocab 5000 --nfe 8 32 --width 64 --layers 2

The first is L = 1,024, V = 50,257, NFE 32, 128 and 1,024, batch 1 and 16. "Bare" makes the sampler's calls of
the trunk, on as many rows, and no head, no law and no draw; "with_head" adds the head at as many positions as
the sampler asked it of. The sampler's overhead is its time over that of bare forwards with head, less one.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from discdiff.methods import Autoregressive, Mdlm, Udlm
from discdiff.networks import Transformer
from discdiff.noise import Noise
from discdiff.samplers import EntropyBudget, FirstHitting, LeftToRight, Sampler, Unchanged
from discdiff.types import Condition, canvas


def main() -> None:
    given = arguments()
    torch.manual_seed(0)
    shape = Transformer(layers=given.layers, width=given.width, heads=given.heads, time=False)
    for batch in given.batch:
        for nfe in given.nfe:
            cases = {
                "mdlm ancestral": (Mdlm(), Sampler(steps=nfe)),
                "udlm ancestral": (Udlm(), Sampler(steps=nfe)),
                "udlm unchanged": (Udlm(), Sampler(steps=nfe, cache=Unchanged())),
            }
            for name, (method, sampler) in cases.items():
                report(name, method, sampler, shape, batch, nfe, given)
        for name, sampler in {
            "mdlm first hitting": Sampler(reverse=FirstHitting()),
            "mdlm entropy budget": Sampler(order=EntropyBudget(nats=given.nats)),
        }.items():
            report(name, Mdlm(), sampler, shape, batch, given.length, given)
        report_autoregressive(shape, batch, given)


def report(
    name: str,
    method: Any,
    sampler: Sampler,
    shape: Transformer,
    batch: int,
    nfe: int,
    given: argparse.Namespace,
) -> None:
    net = method.network(shape, given.vocab).to(given.device).eval()
    blank = canvas(torch.zeros(batch, given.length, dtype=torch.int64, device=given.device))
    sizes: list[int] = []
    handle = net.trunk.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    heads: list[int] = []
    head = net.head.register_forward_hook(lambda _, inputs, __: heads.append(len(inputs[0])))
    took = timed(lambda: sampler.draw(method, net, blank, Noise(0).on(blank.rows)), given.device)
    calls, positions = list(sizes), list(heads)
    handle.remove()
    head.remove()
    bare = timed(lambda: forwards(net, blank.tokens, calls), given.device)
    with_head = timed(lambda: forwards(net, blank.tokens, calls, positions), given.device)
    print(
        json.dumps(
            {
                "case": name,
                "batch": batch,
                "nfe": nfe,
                "calls": len(calls),
                "row_evaluations": sum(calls) / batch,
                "samples_per_second": round(batch / took, 4),
                "seconds": round(took, 3),
                "bare": round(bare, 3),
                "with_head": round(with_head, 3),
                "overhead": round(took / with_head - 1, 3),
            }
        ),
        flush=True,
    )


@torch.no_grad()
def forwards(net: Any, x: torch.Tensor, calls: list[int], positions: list[int] | None = None) -> None:
    """The calls that the sampler made, of the network alone."""
    t = torch.full((len(x), 1), 0.5, dtype=torch.float64, device=x.device)
    for index, rows in enumerate(calls):
        hidden = net.trunk(x[:rows], t[:rows], Condition())
        if positions is not None:
            net.head(hidden.flatten(0, 1)[: positions[index]])


def report_autoregressive(shape: Transformer, batch: int, given: argparse.Namespace) -> None:
    net = Autoregressive().network(shape, given.vocab).to(given.device).eval()
    blank = canvas(torch.zeros(batch, given.length, dtype=torch.int64, device=given.device))
    took = timed(lambda: Autoregressive().sample(net, blank, LeftToRight(), Noise(0)), given.device)
    whole = timed(lambda: forwards(net, blank.tokens, [batch] * given.length), given.device)
    line = {
        "case": "autoregressive cached",
        "batch": batch,
        "seconds": round(took, 3),
        "uncached": round(whole, 3),
    }
    print(json.dumps({**line, "samples_per_second": round(batch / took, 4)}), flush=True)


def timed(run: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        run()
        torch.cuda.synchronize()
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
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--nats", type=float, default=1.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
