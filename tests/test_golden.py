"""Golden losses: twenty training steps of every method on the CPU in float64, kept as text.

`pytest tests/test_golden.py --regenerate-golden` (`make golden`) writes them anew: read the diff before you
commit it.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_laws import METHODS_IN_TABLE

from discdiff.methods import Discriminative
from discdiff.networks import Transformer
from discdiff.noise import Noise
from discdiff.types import Condition, canvas

GOLDEN = Path(__file__).parent / "golden"
STEPS, BATCH, LENGTH, VOCAB = 20, 8, 12, 7
FIRST = {method.kind: method for method in reversed(METHODS_IN_TABLE)}


def losses(method):
    """Mean nats per token of each step, on tokens that repeat with a period of three."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        classes = 3 if isinstance(method, Discriminative) else 0
        net = method.network(Transformer(layers=2, width=32, heads=2, labels=classes), VOCAB)
        _break_ties(net)
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
        values = []
        for step in range(STEPS):
            rows = torch.arange(step * BATCH, (step + 1) * BATCH)
            x = canvas((rows[:, None] + torch.arange(LENGTH) % 3) % VOCAB, first_row=step * BATCH)
            if classes:
                x = replace(x, condition=Condition(labels=rows % classes))
            loss = method.loss(net, x, Noise(1)).sum() / (BATCH * LENGTH)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
    finally:
        torch.set_default_dtype(torch.float32)
    return values


@torch.no_grad()
def _break_ties(net):
    """Weights that start at zero leave logits equal, and then rounding, which each machine does in its own
    way, would say which is the argmax.
    """
    for parameter in net.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", FIRST)
def test_losses_are_golden(kind, request):
    path = GOLDEN / f"{kind}.txt"
    values = losses(FIRST[kind])
    if request.config.getoption("--regenerate-golden"):
        path.write_text("".join(f"{value:.12f}\n" for value in values))
    golden = [float(line) for line in path.read_text().split()]
    assert values == pytest.approx(golden, rel=1e-6, abs=1e-9)


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(FIRST)
