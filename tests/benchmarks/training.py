"""What `fit` costs over the shortest PyTorch loop of the same steps: `python tests/benchmarks/training.py`.

Both train the same network by the same method on the same rows, interleaved in rounds; the ratio is of the
best rounds. `fit` also averages weights, counts tokens over all workers and watches for losses that are not
finite.
"""

import argparse
import time

import torch
from torch import nn

from discdiff.methods import Mdlm
from discdiff.networks import Transformer
from discdiff.noise import Noise
from discdiff.training import Recipe, fit
from discdiff.types import Canvas

VOCAB, LENGTH, BATCH = 64, 64, 32


class Constant:
    """The same rows at every step, so that no loader is measured."""

    rows_per_epoch = 1 << 30

    def __init__(self, device: str):
        tokens = torch.randint(0, VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
        self.canvas = Canvas(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(BATCH)).to(
            device
        )

    def read(self, start: int, count: int) -> Canvas:
        return self.canvas

    def stream(self, start: int, count: int, stride: int):
        while True:
            yield self.canvas


def network(width: int, device: str) -> nn.Module:
    torch.manual_seed(0)
    return Mdlm().network(Transformer(layers=2, width=width, heads=4), VOCAB).to(device)


def plain(net: nn.Module, rows: Constant, recipe: Recipe) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, betas=recipe.betas, fused=True)
    for _ in range(recipe.steps):
        nats = Mdlm().loss(net, rows.canvas, Noise(0).on(rows.canvas.rows))
        (nats.sum() / rows.canvas.free.sum()).backward()
        nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def seconds(run, device: str) -> float:
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    rows, device = Constant(options.device), options.device
    recipe = Recipe(steps=options.steps, batch=BATCH, log_every=10)
    best = {"plain": float("inf"), "fit": float("inf")}
    for _ in range(options.rounds):
        net = network(options.width, device)
        best["plain"] = min(best["plain"], seconds(lambda net=net: plain(net, rows, recipe), device))
        net = network(options.width, device)
        best["fit"] = min(
            best["fit"], seconds(lambda net=net: fit(Mdlm(), net, rows, recipe, device=device), device)
        )
    tokens = options.steps * BATCH * LENGTH
    for name, spent in best.items():
        print(f"{name:6} {tokens / spent:12,.0f} tokens/s")
    print(f"fit / plain: {best['plain'] / best['fit']:.3f} of the speed")


if __name__ == "__main__":
    main()
