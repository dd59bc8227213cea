"""Block diffusion: blocks of one token are autoregression, one block is the inner method, and the one doubled
pass computes what the block-by-block passes of sampling compute."""

import pytest
import torch
from scipy import stats

from discdiff import oracle
from discdiff.methods import Block, D3pm, DiscreteFlow, Gidd, Mdlm, Sedd, Udlm
from discdiff.methods.block import doubled, loss_variance
from discdiff.networks import Transformer
from discdiff.networks.patterns import by_blocks
from discdiff.noise import Noise
from discdiff.processes import Mask
from discdiff.samplers import Blocks, Sampler
from discdiff.samplers.blocks import Following
from discdiff.schedules import Linear
from discdiff.types import Canvas, Condition, canvas

VOCAB, LENGTH = 5, 8
INNER = [Mdlm(), Udlm(), Gidd(), Sedd(), D3pm()]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(method, vocab=VOCAB, time=True):
    torch.manual_seed(0)
    net = method.network(Transformer(layers=2, width=16, heads=2, time=time), vocab)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return net.eval()


def batch(rows=6, vocab=VOCAB):
    return canvas(torch.randint(0, vocab, (rows, LENGTH), generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner.kind)
def test_one_block_is_the_inner_method(inner):
    method = Block(inner=inner, size=LENGTH)
    net, plain = network(method), network(inner)
    plain.load_state_dict(net.state_dict())
    for ours, theirs in ((method.bound, inner.bound), (method.loss, inner.loss)):
        torch.testing.assert_close(ours(net, batch(), Noise(4)), theirs(plain, batch(), Noise(4)))
    sampler = Sampler(steps=6)
    drawn = method.sample(net, batch(), Blocks(size=LENGTH, inside=sampler), Noise(1))
    assert torch.equal(drawn, inner.sample(plain, batch(), sampler, Noise(1)))


def test_blocks_of_one_token_are_autoregression():
    """With all masked, the doubled pass gives -log p(x_i | x_1 ... x_(i-1)) of the chain that sampling walks.

    At any time a masked token costs its weight times this and an unmasked one nothing: the bound is the
    likelihood.
    """
    method = Block(inner=Mdlm(), size=1)
    net, x = network(method, time=False), batch()
    late = 1 - 2.0**-40
    doubled = method.density_at(net, x, torch.full((6, 1), late), Noise(0))
    torch.testing.assert_close(doubled, -log_chain(net, x.tokens), rtol=1e-6, atol=1e-6)
    drawn = torch.stack([method.bound(net, x, Noise(0, step=step)) for step in range(800)])
    error = (drawn.mean(0) + log_chain(net, x.tokens)).abs()
    assert bool((error < 4.5 * drawn.std(0) / 800**0.5).all())


def log_chain(net, tokens):
    """log p of the chain: each token given those before it, its own place masked, no doubling."""
    total = torch.zeros(len(tokens))
    for i in range(tokens.shape[1]):
        x = torch.cat([tokens[:, :i], torch.full_like(tokens[:, :1], net.vocab)], dim=1)
        raw = net(x, torch.zeros(len(x), 1), Condition())[:, -1]
        total = total + raw.log_softmax(-1).gather(-1, tokens[:, i : i + 1])[:, 0]
    return total


def test_samples_of_single_token_blocks_follow_the_chain():
    method = Block(inner=Mdlm(), size=1)
    net = network(method, vocab=3, time=False)
    rows, space = 4000, oracle.every(3, 3)
    blank = canvas(torch.zeros(rows, 3, dtype=torch.int64))
    drawn = method.sample(net, blank, method.default_sampler(4), Noise(2))
    law = log_chain(net, space).exp()
    assert law.sum().item() == pytest.approx(1)
    counts = torch.bincount(oracle.position(drawn, 3), minlength=27)
    assert stats.chisquare(counts.numpy(), (law / law.sum() * rows).detach().numpy()).pvalue > 1e-4


@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner.kind)
def test_the_doubled_pass_is_the_pass_of_sampling(inner):
    """A noisy block behind clean ones, evaluated with cached keys, gives what the doubled pass gives
    there.
    """
    method, size = Block(inner=inner, size=3), 3
    net, x = network(method), batch()
    t = torch.full((6, LENGTH), 0.4)
    x_t = inner.corrupt(x, t, VOCAB, Noise(5).on(x.rows))
    both, times = torch.cat([x_t, x.tokens], 1), torch.cat([t, 0 * t], 1)
    place = torch.arange(LENGTH)
    hidden = net.trunk(
        both,
        times,
        Condition(),
        mask=doubled(LENGTH, size),
        positions=torch.cat([place, place]),
    )
    following = Following(net, LENGTH)
    for start in range(0, LENGTH, size):
        stop = min(start + size, LENGTH)
        once = following.trunk(x_t[:, start:stop], t[:, :1], Condition())
        again = following.trunk(x_t[:, start:stop], t[:, :1], Condition())
        assert torch.equal(once, again)
        torch.testing.assert_close(once, hidden[:, start:stop])
        following.keep(x.tokens[:, start:stop], Condition())


def test_documents_confine_attention_in_the_doubled_pass():
    method = Block(inner=Mdlm(), size=2)
    net, x = network(method), batch()
    documents = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]).expand(6, LENGTH)
    apart = Canvas(x.tokens, x.free, x.rows, Condition(documents=documents))
    changed = apart.with_tokens(torch.cat([(x.tokens[:, :4] + 1) % VOCAB, x.tokens[:, 4:]], 1))
    only_last = torch.arange(LENGTH).expand(6, LENGTH) >= 4
    values = [
        method.bound(net, Canvas(c.tokens, only_last, c.rows, c.condition), Noise(3))
        for c in (apart, changed)
    ]
    torch.testing.assert_close(values[0], values[1])
    free = Canvas(changed.tokens, only_last, x.rows)
    assert not torch.allclose(method.bound(net, free, Noise(3)), values[0])


def test_each_block_has_a_time_of_its_own():
    method = Block(inner=Mdlm(), size=2)
    t = method.times(batch(), Noise(0).on(torch.arange(6)))
    assert torch.equal(t[:, 0::2], t[:, 1::2])
    assert len(t[0].unique()) == LENGTH // 2
    assert bool(((t > 0) & (t < 1)).all())


def test_clipped_times_lower_the_variance_of_the_loss():
    """Linear mask noise weighs by 1 / t: small times are rare and heavy."""
    net = network(Block(inner=Mdlm(), size=4))
    whole, clipped = (
        loss_variance(Block(inner=Mdlm(), size=4, clip=clip), net, batch(), Noise(0), draws=64)
        for clip in ((0.0, 1.0), (0.45, 0.95))
    )
    assert clipped < whole / 2


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="can't run inside blocks"):
        Block(inner=DiscreteFlow())
    with pytest.raises(ValueError, match="can't run inside blocks"):
        Block(inner=Block(inner=Mdlm()))
    with pytest.raises(ValueError, match="cut its ends off"):
        Block(inner=Mdlm(process=Mask(schedule=Linear(eps=0.1))))
    with pytest.raises(ValueError, match="within 0 and 1"):
        Block(inner=Mdlm(), clip=(0.5, 0.5))
    method = Block(inner=Mdlm(), size=4)
    with pytest.raises(ValueError, match="put other samplers inside"):
        method.sample(network(method), batch(), Sampler(), Noise(0))
    x = batch()
    late = Canvas(x.tokens, (torch.arange(LENGTH) < 2).expand(6, LENGTH), x.rows)
    with pytest.raises(ValueError, match="later block"):
        method.sample(network(method), late, Blocks(size=4), Noise(0))


def test_context_is_never_touched():
    method = Block(inner=Mdlm(), size=4)
    x = batch()
    free = (torch.arange(LENGTH) >= 3).expand(6, LENGTH)
    drawn = method.sample(network(method), Canvas(x.tokens, free, x.rows), Blocks(size=4), Noise(0))
    assert torch.equal(drawn[:, :3], x.tokens[:, :3])
    assert bool((drawn < VOCAB).all())


@pytest.mark.parametrize(
    "documents", [None, torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 2, 2]])]
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("size", [1, 3, 4, 8])
def test_attention_by_blocks_is_attention_with_the_dense_mask(size, documents):
    """The kernel itself is compiled on GPUs only; its plain form, with the same mask of blocks, runs here."""
    pattern = doubled(8, size, documents)
    query, key, value = torch.randn(3, 2, 2, 16, 4, generator=torch.Generator().manual_seed(1))
    device = torch.device("cpu")
    dense = torch.nn.functional.scaled_dot_product_attention(query, key, value, pattern.dense(device))
    torch.testing.assert_close(by_blocks(query, key, value, pattern.sparse(device)), dense)


def test_blocks_in_which_nothing_is_allowed_are_skipped():
    """Of a doubled sequence of 1,024 positions: three quarters are, nearly."""
    mask = doubled(1024, 16).sparse(torch.device("cpu"))
    assert mask.sparsity() > 60
