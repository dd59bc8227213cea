"""Laws of latent diffusion: what is reconstructed, latents of unit scale, frozen weights."""

from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter

from discdiff.methods import AnyMethod, Autoencoder, Follows, Method, Scored
from discdiff.networks import Transformer
from discdiff.networks.autoencoder import Seen, portions
from discdiff.noise import Noise, Stream
from discdiff.types import Condition, DiscdiffError, canvas

VOCAB, LENGTH = 5, 8
BACKBONE = Transformer(layers=2, width=16, heads=2)
AUTOENCODERS = [Autoencoder(size=8), Autoencoder(span=2, size=8), Autoencoder(span=8, size=6, sigma=0.0)]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def each(values):
    return pytest.mark.parametrize("method", values, ids=lambda value: value.model_dump_json()[:80])


def small_network(method, vocab=VOCAB, backbone=BACKBONE, std=0.3):
    """A network that does something."""
    torch.manual_seed(1)
    net = method.network(backbone, vocab).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return net


def texts(rows, length=LENGTH, vocab=VOCAB, seed=0):
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(tokens, size):
    """All but the first `size` positions of each row are padding."""
    return replace(canvas(tokens), free=(torch.arange(tokens.shape[1]) < size).expand(tokens.shape))


# The autoencoder -------------------------------------------------------------------------------------------


@each(AUTOENCODERS)
def test_an_autoencoder_is_a_method_without_a_bound(method):
    assert TypeAdapter(AnyMethod).validate_json(method.model_dump_json()) == method
    assert isinstance(method, Method)
    assert not isinstance(method, Scored)
    assert not isinstance(method, Follows)


@each(AUTOENCODERS)
def test_latents_have_mean_square_one_whatever_the_weights(method):
    for std in (0.03, 0.3, 3.0):
        net = small_network(method, std=std)
        z = net.encode(Seen(canvas(texts(6)), method.span))
        assert z.shape == (6, LENGTH // method.span, method.size)
        torch.testing.assert_close(z.square().mean(-1), torch.ones(z.shape[:2]), rtol=1e-3, atol=0)
        assert net.decode(z, Condition()).shape == (6, LENGTH, VOCAB)


@each(AUTOENCODERS)
def test_without_noise_the_loss_is_the_cross_entropy_of_what_is_reconstructed(method):
    net = small_network(method)
    x = canvas(texts(6))
    log_p = net.decode(net.encode(Seen(x, method.span)), Condition()).log_softmax(-1)
    nats = -log_p.gather(-1, x.tokens[..., None]).sum((1, 2))
    quiet = method.model_copy(update={"sigma": 0.0})
    torch.testing.assert_close(quiet.loss(net, x, Noise(0)), nats)
    assert torch.equal(method.reconstruct(net, x), log_p.argmax(-1))


def test_the_decoder_reads_latents_with_noise_of_the_deviation_that_was_asked():
    method = Autoencoder(span=2, size=3, sigma=0.7)
    net = small_network(method)
    x = canvas(texts(2000))
    found = []
    decode = net.decode
    net.decode = lambda z, condition: found.append(z) or decode(z, condition)
    with torch.no_grad():
        method.loss(net, x, Noise(0))
        eps = (found[0] - net.encode(Seen(x, 2))) / 0.7
    assert abs(eps.mean()) < 0.02
    assert abs(eps.std() - 1) < 0.02


@each(AUTOENCODERS)
def test_padding_is_seen_by_nobody_and_only_free_positions_are_counted(method):
    """Seven tokens and one of padding, which shares its latent with text where latents span several."""
    net = small_network(method)
    one, other = padded(texts(6), 7), padded(texts(6), 7)
    other.tokens[:, 7:] = texts(6, seed=1)[:, 7:]
    torch.testing.assert_close(
        method.loss(net, one, Noise(0)), method.loss(net, other, Noise(0)), rtol=0, atol=0
    )
    assert torch.equal(method.loss(net, padded(texts(6), 0), Noise(0)), torch.zeros(6))
    free = one.free & (torch.arange(LENGTH) != 3)
    without = method.loss(net, replace(one, free=free), Noise(0))
    whole = method.loss(net, one, Noise(0))
    assert bool((without < whole).all())


def test_text_before_padding_is_encoded_as_text_alone():
    method = Autoencoder(span=2, size=8)
    net = small_network(method)
    x = texts(6)
    z = net.encode(Seen(padded(x, 4), 2))[:, :2]
    torch.testing.assert_close(z, net.encode(Seen(canvas(x[:, :4]), 2)))


def test_documents_are_apart_in_an_autoencoder_too():
    method = Autoencoder(size=8)
    net = small_network(method)
    x, y = texts(6), texts(6, seed=1)
    y[:, :3] = x[:, :3]
    documents = (torch.arange(LENGTH) >= 3).long().expand(6, -1)
    found = [
        net.encode(Seen(replace(canvas(each), condition=Condition(documents=documents)), 1))[:, :3]
        for each in (x, y)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.equal(net.encode(Seen(canvas(x), 1))[:, :3], net.encode(Seen(canvas(y), 1))[:, :3])
    with pytest.raises(DiscdiffError, match="of two: pack rows another way"):
        Seen(replace(canvas(x), condition=Condition(documents=documents)), 2)


def test_latents_that_do_not_cover_the_text_are_refused():
    with pytest.raises(DiscdiffError, match="8 positions were given and a latent stands for 3"):
        Seen(canvas(texts(1)), 3)


def test_an_autoencoder_is_not_drawn_from():
    method = Autoencoder()
    for ask in (
        lambda: method.default_sampler(4),
        lambda: method.sample(small_network(method), canvas(texts(1)), None, Noise(0)),
    ):
        with pytest.raises(DiscdiffError, match="train latent, which starts from it"):
            ask()


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 8, 12])
def test_the_blocks_of_the_backbone_are_shared_out(layers):
    parts = portions(Transformer(layers=layers, width=16, heads=2, labels=3, tied=True))
    assert sum(part.layers for part in parts) == max(3, layers)
    assert [part.labels for part in parts] == [0, 0, 3]
    assert not any(part.tied for part in parts)


@each([Autoencoder(size=8), Autoencoder(span=4, size=16)])
def test_a_trained_autoencoder_reconstructs_every_text_through_noise(method):
    """Of random tokens, which nothing but their latents tells."""
    net = trained(method, lambda step: texts(32, seed=step), steps=80)
    x = canvas(texts(500, seed=10_000))
    assert torch.equal(method.reconstruct(net, x), x.tokens)
    with torch.no_grad():
        z = net.encode(Seen(x, method.span))
        eps = Noise(3).on(x.rows).normal(Stream.DATA, *z.shape[1:])
        read = net.decode(z + method.sigma * eps, Condition()).argmax(-1)
    assert (read == x.tokens).double().mean() > 0.99


def trained(method, draw, steps, rate=1e-2, net=None, vocab=VOCAB, width=32) -> torch.nn.Module:
    """Train in float32 on what `draw(step)` gives, the rate falling to nothing."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    net = method.network(Transformer(layers=2, width=width, heads=2), vocab) if net is None else net
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        tokens = draw(step)
        x = canvas(tokens, first_row=step * len(tokens))
        loss = method.loss(net, x, Noise(0)).sum() / tokens.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()
