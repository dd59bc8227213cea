"""Time and peak memory of each discrete objective against the bare head, at V = 50,257 and B·L = 4,096.

    python tests/benchmarks/objectives.py
    python tests/benchmarks/objectives.py --width 768 --only udlm mdlm

A case is a method's `loss` and its backward pass where features stand in for the trunk: the head, the
objective and nothing else. The named alternative is the bare head in the same process, step by step in turn:
logits at all positions, and their backward pass with the logits themselves as gradient, the least that any
objective on all positions needs. The memory of either is the growth of resident memory over what was held
before its step, by the kernel's high-water mark, which is reset first: logits, temporaries, workspaces of
matrix products and gradients of weights and features all count. On CUDA it is the allocator's peak, likewise
reset. Each case has a process of its own.

`head at` is the share of the batch's positions at which the head was evaluated in the forward pass. Limits,
and an exit status of 1 where one is passed: mask noise evaluates it at exactly the positions that it masked,
and no case peaks above one tensor of logits at all positions.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from discdiff.methods import (
    Autoregressive,
    Block,
    D3pm,
    FlowMatching,
    GenMd4,
    Gidd,
    Md4,
    Mdlm,
    Multinomial,
    Sedd,
    Udlm,
)
from discdiff.methods.flow_matching import GeneralizedKl
from discdiff.methods.gidd import Exact
from discdiff.networks import Transformer
from discdiff.noise import Noise
from discdiff.objectives import Steps
from discdiff.processes import Hybrid, Mask, Uniform
from discdiff.types import Canvas, canvas

MASKED = {
    "mdlm": Mdlm(),
    "mdlm, 1,000 steps": Mdlm(clock=Steps()),
    "md4": Md4(),
    "genmd4": GenMd4(),
    "sedd mask": Sedd(),
    "d3pm mask": D3pm(process=Mask()),
    "flow matching mask": FlowMatching(process=Mask()),
    "flow matching mask, KL": FlowMatching(process=Mask(), learns=GeneralizedKl()),
    "block of mdlm": Block(inner=Mdlm()),
}
WHOLE = {
    "autoregressive": Autoregressive(),
    "udlm": Udlm(),
    "gidd": Gidd(),
    "gidd, bound's weight": Gidd(weighting=Exact()),
    "sedd uniform": Sedd(process=Uniform()),
    "sedd hybrid": Sedd(process=Hybrid()),
    "d3pm uniform": D3pm(),
    "d3pm uniform, bound": D3pm(auxiliary=0),
    "d3pm hybrid": D3pm(process=Hybrid()),
    "multinomial": Multinomial(),
    "flow matching uniform": FlowMatching(),
    "flow matching uniform, KL": FlowMatching(learns=GeneralizedKl()),
    "block of udlm": Block(inner=Udlm()),
}
CASES = MASKED | WHOLE


class Features(nn.Module):
    """A trunk that reads nothing: features to learn, for a noisy sequence and the clean one behind it."""

    def __init__(self, batch: int, length: int, width: int):
        super().__init__()
        self.h = nn.Parameter(torch.randn(batch, length, width))

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.h if x.shape[1] == self.h.shape[1] else torch.cat([self.h, self.h], dim=1)


def network(method: Any, given: argparse.Namespace, batch: int) -> Any:
    torch.manual_seed(0)
    net = method.network(Transformer(layers=1, width=given.width, heads=1), given.vocab)
    for parameter in net.head.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=given.width**-0.5)
    net.trunk = Features(batch, given.length, given.width)
    return net.to(given.device)


def bare(net: Any) -> None:
    raw = net.head(net.trunk.h)
    raw.backward(raw.detach())


def objective(method: Any, net: Any, given: argparse.Namespace, batch: int, step: int) -> None:
    x = text(given, batch)
    (method.loss(net, x, Noise(0, step=step)).sum() / x.tokens.numel()).backward()


def text(given: argparse.Namespace, batch: int) -> Canvas:
    tokens = torch.randint(given.vocab, (batch, given.length), generator=torch.Generator().manual_seed(0))
    return canvas(tokens.to(given.device))


def measure(name: str, given: argparse.Namespace) -> dict[str, float]:
    method = CASES[name]
    small = network(method, given, batch=1)
    objective(method, small, given, batch=1, step=0)  # Libraries load, pools fill.
    net = network(method, given, given.batch)
    steps = {"bare": lambda: bare(net), "loss": lambda: objective(method, net, given, given.batch, step=0)}
    logits = given.batch * given.length * given.vocab * 4
    found = {f"{label} peak": peak(net, run, given.device) / logits for label, run in steps.items()}
    found |= {f"{label} seconds": float("inf") for label in steps}
    for _ in range(given.rounds):
        for label, run in steps.items():
            net.zero_grad(set_to_none=True)
            found[f"{label} seconds"] = min(found[f"{label} seconds"], seconds(run, given.device))
    return found | evaluated(method, net, given)


@torch.no_grad()
def evaluated(method: Any, net: Any, given: argparse.Namespace) -> dict[str, float]:
    """At what share of positions the head was evaluated, and what share was masked."""
    seen: list[int] = []
    masked: list[int] = []
    net.trunk.register_forward_hook(
        lambda _, inputs, __: masked.append(int((inputs[0][:, : given.length] == given.vocab).sum()))
    )
    head = net.head.logits if isinstance(method, GenMd4) else net.head
    head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:-1].numel()))
    method.loss(net, text(given, given.batch), Noise(0))
    positions = given.batch * given.length
    return {"head": sum(seen) / positions, "masked": sum(masked) / positions}


def seconds(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(net: Any, run: Callable[[], object], device: str) -> int:
    """Bytes that a step holds at most over what was held before it."""
    net.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory is measured on Linux")


def main() -> int:
    given = arguments()
    if given.case:
        print(json.dumps(measure(given.case, given)))
        return 0
    chosen = [name for name in CASES if not given.only or name.startswith(tuple(given.only))]
    print(f"{'':26}  head at  seconds   bare  ratio  peak / logits  bare  ratio")
    return int(any([over(name, child(name)) for name in chosen]))


def child(name: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--case", name]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def over(name: str, found: dict[str, float]) -> bool:
    """Print a row; whether it passes a limit."""
    took, alone = found["loss seconds"], found["bare seconds"]
    peak, least = found["loss peak"], found["bare peak"]
    print(
        f"{name:26}{found['head']:9.3f}{took:9.2f}{alone:7.2f}{took / alone:7.2f}"
        f"{peak:15.2f}{least:6.2f}{peak / least:7.2f}",
        flush=True,
    )
    passed = [f"a peak of {peak:.2f} tensors of logits"] if peak > 1 else []
    if name in MASKED and found["head"] != found["masked"]:
        passed.append(f"the head at {found['head']:.3f} of positions, {found['masked']:.3f} masked")
    for what in passed:
        print(f"  over the limit: {what}", flush=True)
    return bool(passed)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vocab", type=int, default=50_257)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], help="cases whose name starts so")
    parser.add_argument("--case", choices=CASES, help="this one alone, in this process")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
