"""Laws of latent diffusion: what is reconstructed, latents of unit scale, frozen weights."""

import re
import shutil
from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter
from training_problem import RECIPE, Table

from discdiff.evaluation.likelihood import Likelihood
from discdiff.methods import AnyMethod, Autoencoder, Follows, Latent, Mdlm, Method, Scored
from discdiff.methods.gaussian_diffusion import Exact
from discdiff.methods.latent import LatentNetwork
from discdiff.networks import Transformer
from discdiff.networks.autoencoder import Seen, portions
from discdiff.noise import Noise, Stream
from discdiff.predictions import PredictNoise, PredictX0
from discdiff.processes.gaussian import VariancePreserving
from discdiff.samplers import AnySampler, Ddim, Ddpm, GaussianSampler, ProbabilityFlow, Sampler
from discdiff.schedules import SquaredCosine
from discdiff.training import Checkpoints, Subject, check_start, fit, load, start_from
from discdiff.types import Condition, DiscdiffError, VectorCanvas, canvas

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
        if parameter.ndim > 1:
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
    net = trained(method, lambda step: texts(32, seed=step), steps=120, rate=5e-3)
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


# The diffusion of its latents ------------------------------------------------------------------------------

PLAIN = Latent(autoencoder=Autoencoder(size=8), self_conditioning=None)
LATENTS = [
    Latent(autoencoder=Autoencoder(size=8)),
    PLAIN,
    Latent(autoencoder=Autoencoder(span=2, size=6), prediction=PredictX0(), weighting=Exact()),
    Latent(
        autoencoder=Autoencoder(span=4, size=6),
        prediction=PredictNoise(),
        process=VariancePreserving(schedule=SquaredCosine(), stop=0.999),
    ),
]


def subject(method, backbone=BACKBONE, vocab=VOCAB):
    return Subject(method=method, backbone=backbone, vocab=vocab, tokenizer="0123456789", length=LENGTH)


@each(LATENTS)
def test_latent_diffusion_follows_an_autoencoder_and_has_no_bound(method):
    assert TypeAdapter(AnyMethod).validate_json(method.model_dump_json()) == method
    assert hash(method) == hash(method.model_copy())
    assert isinstance(method, Method)
    assert isinstance(method, Follows)
    assert not isinstance(method, Scored)
    assert method.first == method.autoencoder
    sampler = method.default_sampler(7)
    assert TypeAdapter(AnySampler).validate_json(sampler.model_dump_json()) == sampler
    assert sampler.evaluations(LENGTH) == 7


@each([Autoencoder(), Latent()])
def test_it_is_not_scored_and_says_why(method):
    net = small_network(method)
    with pytest.raises(DiscdiffError, match=re.escape(method.unscored)):
        Likelihood().measure(method, net, [canvas(texts(2))])


def test_noise_that_hides_all_can_t_be_predicted():
    with pytest.raises(ValueError, match="stop below 1"):
        Latent(prediction=PredictNoise())


@each(LATENTS)
def test_values_and_gradients_are_finite_at_both_ends_of_time(method):
    torch.set_default_dtype(torch.float32)
    net = small_network(method)
    seen = Seen(canvas(texts(4)), method.autoencoder.span)
    latents = VectorCanvas(net.autoencoder.encode(seen), seen.live_latents)
    for t in (0.0, 2.0**-53, 1e-9, 0.5, 1 - 2.0**-53, 1.0):
        time = torch.full((4, 1), t, dtype=torch.float64)
        loss = method.vector_loss(net.denoiser, latents, time, Noise(0).on(torch.arange(4)))
        assert bool(loss.isfinite().all())
        for gradient in torch.autograd.grad(loss.sum(), tuple(net.denoiser.parameters())):
            assert bool(gradient.isfinite().all())


def test_the_loss_is_the_squared_error_of_the_velocity_of_latents():
    net = small_network(PLAIN)
    x = canvas(texts(6))
    noise = Noise(3).on(x.rows)
    z0 = net.autoencoder.encode(Seen(x, 1))
    eps, t = noise.normal(Stream.CORRUPT, *z0.shape[1:]).double(), noise.time()
    signal, left = PLAIN.process.alpha(t).sqrt()[..., None], PLAIN.process.beta(t).sqrt()[..., None]
    velocity = net.denoiser(signal * z0 + left * eps, t, Condition())
    expected = (velocity - (signal * eps - left * z0)).square().sum((1, 2))
    torch.testing.assert_close(PLAIN.loss(net, x, Noise(3)), expected)


@each(LATENTS)
def test_a_row_s_loss_does_not_depend_on_its_company_nor_on_padding(method):
    net = small_network(method)
    x = replace(canvas(texts(6), first_row=100), free=padded(texts(6), 7).free)
    whole = method.loss(net, x, Noise(0))
    parts = [method.loss(net, x.narrow(i, i + 1), Noise(0)) for i in range(6)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-9, atol=1e-9)
    other = x.with_tokens(torch.where(x.free, x.tokens, texts(6, seed=1)))
    assert torch.equal(method.loss(net, other, Noise(0)), whole)
    assert torch.equal(method.loss(net, padded(texts(6), 0), Noise(0)), torch.zeros(6))


@each(LATENTS)
def test_latents_of_padding_are_neither_seen_nor_counted(method):
    """Eight tokens and eight of padding, or the eight alone: the noise of a row's latents begins alike."""
    net = small_network(method)
    x = texts(6, length=16)
    padding = method.loss(net, padded(x, 8), Noise(0))
    torch.testing.assert_close(padding, method.loss(net, canvas(x[:, :8]), Noise(0)))


def test_classes_are_for_the_diffusion_alone():
    backbone = Transformer(layers=1, width=16, heads=2, labels=3)
    net = small_network(PLAIN, backbone=backbone)
    x = canvas(texts(2))
    one, other = (replace(x, condition=Condition(labels=torch.full((2,), k))) for k in (0, 1))
    assert not torch.equal(PLAIN.loss(net, one, Noise(0)), PLAIN.loss(net, other, Noise(0)))
    assert torch.equal(*(net.autoencoder.encode(Seen(each, 1)) for each in (one, other)))
    assert net.autoencoder.encoder.trunk.label is None


def test_the_encoder_is_deterministic_while_the_diffusion_trains():
    """No dropout in what is frozen, in training mode or not."""
    backbone = Transformer(layers=1, width=16, heads=2, dropout=0.5)
    net = small_network(PLAIN, backbone=backbone)
    seen = Seen(canvas(texts(2)), 1)
    quiet = net.autoencoder.encode(seen)
    net.train()
    assert torch.equal(net.autoencoder.encode(seen), quiet)
    assert net.denoiser.training


# Starting from the autoencoder -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An autoencoder trained a little, and latent diffusion that starts from it, with their checkpoints."""
    folder = tmp_path_factory.mktemp("latent")
    method = LATENTS[0]
    one = subject(method.first)
    fit(one.method, one.build(0), Table(), RECIPE, checkpoints=Checkpoints(str(folder / "a"), one, RECIPE))
    first = load(str(folder / "a")).network
    two = subject(method)
    check_start(two, one)
    net = two.build(1)
    start_from(method, net, first)
    logs = {}
    recipe = RECIPE.model_copy(update={"precision": "bfloat16"})
    fit(
        method,
        net,
        Table(),
        recipe,
        validation=Table(2),
        checkpoints=Checkpoints(str(folder / "b"), two, recipe),
        log=lambda step, metrics: logs.update(metrics),
    )
    return folder, first, net, logs, recipe


def test_the_autoencoder_stays_as_it_was_trained_bit_for_bit(runs):
    """Through AdamW with decay, averaging, bfloat16 and a checkpoint, which needs no other."""
    torch.set_default_dtype(torch.float32)
    folder, first, net, logs, _ = runs
    trained_first, found = first.state_dict(), load(str(folder / "b")).network
    for each_net in (net, found):
        kept = each_net.autoencoder.state_dict()
        assert kept.keys() == trained_first.keys()
        assert all(torch.equal(kept[name], trained_first[name]) for name in kept)
    begun = subject(LATENTS[0]).build(1).denoiser.state_dict()
    assert any(not torch.equal(begun[name], p) for name, p in net.denoiser.state_dict().items())
    assert {"validation_loss", "validation_loss_se"} <= logs.keys()
    assert "bound" not in logs


def test_interrupted_and_resumed_it_is_the_same(runs, tmp_path):
    torch.set_default_dtype(torch.float32)
    folder, first, net, _, recipe = runs
    method = LATENTS[0]
    shutil.copytree(folder / "b" / "step-00000008", tmp_path / "step-00000008")
    again = subject(method).build(1)
    start_from(method, again, first)
    fit(method, again, Table(), recipe, checkpoints=Checkpoints(str(tmp_path), subject(method), recipe))
    ours, theirs = again.state_dict(), net.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_another_autoencoder_is_refused():
    method = LATENTS[0]
    with pytest.raises(DiscdiffError, match=r"starts from .*'autoencoder'.* and the checkpoint is of"):
        check_start(subject(method), subject(Autoencoder(span=2)))
    with pytest.raises(DiscdiffError, match="starts from a trained autoencoder and no checkpoint was given"):
        check_start(subject(method), None)
    for other in (Autoencoder(size=9), Mdlm()):
        with pytest.raises(DiscdiffError, match="not of Autoencoder"):
            start_from(method, small_network(method), small_network(other))


# Sampling --------------------------------------------------------------------------------------------------


class Known(torch.nn.Module):
    """A denoiser that knows the latents."""

    def __init__(self, z):
        super().__init__()
        self.vocab = VOCAB
        self.z = torch.nn.Parameter(z)
        self.head = torch.nn.Identity()

    def trunk(self, x, t, condition):
        return self.z

    def forward(self, x, t, condition):
        return self.z


@pytest.mark.parametrize("span", [1, 4])
def test_known_latents_are_drawn_and_decoded_to_their_text(span):
    """Through the whole of sampling, by every reverse step: what is decoded is the text that was encoded."""
    first = Autoencoder(span=span, size=16)
    method = Latent(autoencoder=first, prediction=PredictX0(), self_conditioning=None)
    net = trained(first, lambda step: texts(32, seed=step), steps=80)
    torch.set_default_dtype(torch.float32)
    x = canvas(texts(20, seed=10_000))
    whole = LatentNetwork(net, Known(net.encode(Seen(x, span)).detach()))
    for reverse in (Ddpm(), Ddim(), ProbabilityFlow()):
        blank = x.with_tokens(torch.zeros_like(x.tokens))
        drawn = method.sample(whole, blank, GaussianSampler(steps=5, reverse=reverse), Noise(0))
        assert torch.equal(drawn, x.tokens)


@each(LATENTS)
def test_a_sample_does_not_depend_on_its_company(method):
    torch.set_default_dtype(torch.float32)
    net = small_network(method)
    x = canvas(torch.zeros(7, LENGTH, dtype=torch.int64), first_row=40)
    sampler = method.default_sampler(5).model_copy(update={"microbatch": 4})
    whole = method.sample(net, x, sampler, Noise(3))
    parts = [method.sample(net, x.narrow(i, i + 1), sampler, Noise(3)) for i in range(7)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole, method.sample(net, x, sampler, Noise(3)))
    assert len(whole.unique(dim=0)) > 1
    assert not torch.equal(whole, method.sample(net, x, sampler, Noise(4)))


def test_an_observer_sees_the_tokens_of_every_state():
    net = small_network(PLAIN)
    x = canvas(torch.zeros(3, LENGTH, dtype=torch.int64))
    seen = []
    drawn = PLAIN.sample(
        net, x, PLAIN.default_sampler(4), Noise(3), lambda t, tokens: seen.append((t, tokens))
    )
    assert [t for t, _ in seen] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert torch.equal(seen[-1][1], drawn)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"free": [False] + [True] * 7}, "none is known from a part of it"),
        ({"free": [True] * 7 + [False]}, "the last position is given"),
        ({"allowed": torch.ones(2, LENGTH, VOCAB, dtype=torch.bool)}, "restricted with `allowed`"),
    ],
)
def test_what_can_t_be_obeyed_is_refused(change, words):
    if "free" in change:
        change = {"free": torch.tensor(change["free"]).expand(2, -1)}
    with pytest.raises(DiscdiffError, match=words):
        PLAIN.sample(
            small_network(PLAIN), replace(canvas(texts(2)), **change), PLAIN.default_sampler(2), Noise(0)
        )


def test_context_is_refused_in_training_too():
    x = replace(canvas(texts(2)), free=(torch.arange(LENGTH) >= 3).expand(2, -1))
    with pytest.raises(DiscdiffError, match="none is known from a part of it"):
        PLAIN.loss(small_network(PLAIN), x, Noise(0))


def test_a_sampler_of_tokens_is_refused():
    with pytest.raises(DiscdiffError, match="give 'gaussian'"):
        PLAIN.sample(small_network(PLAIN), canvas(texts(2)), Sampler(steps=2), Noise(0))


# Learning --------------------------------------------------------------------------------------------------


def cycle(rows, seed, length=4):
    """A token and its successor, in a cycle, three times in four."""
    u = Noise(seed, rows=torch.arange(rows)).uniform(Stream.DATA, length + 1)
    return ((u[:, 1:] * 4 >= 1).long().cumsum(-1) + (u[:, :1] * VOCAB).long()) % VOCAB


@pytest.mark.parametrize(("span", "steps", "most"), [(1, 250, 0.75), (4, 200, 0.35)])
def test_it_learns_how_tokens_hang_together(span, steps, most):
    """Independent tokens, at their best, are 0.936 of total variation from the law."""
    length, rows = 4, 1000
    every = torch.cartesian_prod(*[torch.arange(VOCAB)] * length)
    step = (every[:, 1:] - every[:, :-1]) % VOCAB
    law = torch.where(step == 1, 0.75, torch.where(step == 0, 0.25, 0.0)).prod(-1) / VOCAB
    assert (law - VOCAB**-length).abs().sum() / 2 > 0.93
    first = Autoencoder(span=span, size=8)
    method = Latent(autoencoder=first)
    trained_first = trained(first, lambda step: cycle(64, step), steps=60)
    net = method.network(Transformer(layers=2, width=32, heads=2), VOCAB)
    method.begin(net, trained_first)
    net = trained(method, lambda step: cycle(64, 1000 + step), steps=steps, net=net)
    blank = canvas(torch.zeros(rows, length, dtype=torch.int64))
    drawn = method.sample(net, blank, method.default_sampler(32), Noise(5))
    place = (drawn * VOCAB ** torch.arange(length).flip(0)).sum(-1)
    found = torch.bincount(place, minlength=len(law)) / rows
    assert (found - law).abs().sum() / 2 < most


def test_the_exact_weighting_needs_noise_on_latents():
    with pytest.raises(ValueError, match="infinite where latents have no noise"):
        Latent(weighting=Exact(), process=VariancePreserving(schedule=SquaredCosine(), start=0))
