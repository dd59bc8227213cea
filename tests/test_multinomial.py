"""Multinomial diffusion: drawing steps by their past losses leaves the mean alone, and ranks share one
history.
"""

import subprocess
import sys

import pytest
import torch

from discdiff.methods import Multinomial
from discdiff.networks import Transformer
from discdiff.noise import Noise
from discdiff.objectives import Steps
from discdiff.types import canvas

METHOD = Multinomial(clock=Steps(count=8), warm=1)


def network():
    torch.manual_seed(0)
    net = METHOD.network(Transformer(layers=1, width=16, heads=2), 5)
    torch.nn.init.normal_(net.head.weight, std=0.5)
    return net


def batch(rows):
    tokens = torch.randint(0, 5, (1, 6), generator=torch.Generator().manual_seed(0)).expand(rows, 6)
    return canvas(tokens)


@torch.no_grad()
def test_importance_sampling_is_unbiased_and_lowers_the_variance():
    net, x = network(), batch(3000)
    even = METHOD.bound(net, x, Noise(1))
    METHOD.loss(net, x, Noise(2))
    assert net.history.seen.sum() == 3000
    law = net.history.probabilities(METHOD.warm)
    assert law.sum().item() == pytest.approx(1)
    assert law.max() > 2 * law.min()
    weighted = METHOD.loss(net, x, Noise(3))
    spread = (even.var() / 3000 + weighted.var() / 3000).sqrt()
    assert abs(even.mean() - weighted.mean()) < 4 * spread
    assert weighted.var() < even.var()


def test_the_history_is_saved_with_the_network():
    net = network()
    METHOD.loss(net, batch(200), Noise(2))
    again = network()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.history.squares, net.history.squares)
    assert torch.equal(METHOD.loss(again, batch(20), Noise(9)), METHOD.loss(net, batch(20), Noise(9)))


def test_the_bound_neither_reads_nor_writes_the_history():
    net = network()
    before = METHOD.bound(net, batch(20), Noise(2))
    METHOD.loss(net, batch(200), Noise(2))
    seen = net.history.seen.clone()
    assert torch.equal(METHOD.bound(net, batch(20), Noise(2)), before)
    assert torch.equal(net.history.seen, seen)


RANK = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, {tests!r})
from test_multinomial import METHOD, batch, network
from discdiff.noise import Noise
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://{store}", rank=rank, world_size=2)
net = network()
x = batch(40).narrow(20 * rank, 20 * rank + 20)
METHOD.loss(net, x, Noise(2))
print(net.history.squares.tolist(), net.history.seen.tolist())
dist.destroy_process_group()
"""


def test_ranks_share_one_history_equal_to_that_of_one_process(tmp_path):
    from pathlib import Path

    script = RANK.format(tests=str(Path(__file__).parent), store=tmp_path / "store")
    ranks = [
        subprocess.Popen([sys.executable, "-c", script, str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    printed = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert printed[0] == printed[1] != ""
    alone = network()
    METHOD.loss(alone, batch(40), Noise(2))
    squares, seen = printed[0].split("] [")
    assert seen.strip() == str(alone.history.seen.tolist())[1:]
    values = torch.tensor([float(v) for v in squares.strip("[").split(",")], dtype=torch.float64)
    torch.testing.assert_close(values, alone.history.squares, rtol=1e-5, atol=0)
