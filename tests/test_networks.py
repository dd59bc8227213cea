"""Laws of the backbone: who depends on whom, what the time does, and that a cache changes nothing."""

import pytest
import torch
from torch import nn

from discdiff.networks import (
    Attention,
    Bidirectional,
    BlockCausal,
    Causal,
    KeyValueCache,
    Transformer,
    TransformerNetwork,
)
from discdiff.networks.rotary import rotate, rotation
from discdiff.types import Condition, DiscdiffError, Network

B, L, V = 2, 6, 7
NOTHING = Condition()
PATTERNS = [Bidirectional(), Causal(), BlockCausal(size=2), BlockCausal(size=4)]


def build(attention: Attention = PATTERNS[0], **fields: object) -> TransformerNetwork:
    """A float64 network with all its weights random: none is zero as at initialization."""
    torch.manual_seed(0)
    net = Transformer(layers=2, width=16, heads=2, **fields).build(V, V, attention).double()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.3)
    return net.eval()


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, V, (B, L), generator=torch.Generator().manual_seed(seed))


def times() -> torch.Tensor:
    return torch.tensor([[0.3], [0.8]], dtype=torch.float64)


def depends(net: TransformerNetwork, condition: Condition = NOTHING, **options) -> torch.Tensor:
    """Whether output i depends on input j, by derivatives through a soft input. -> [L, L]"""

    def output(soft: torch.Tensor) -> torch.Tensor:
        return net(soft, times()[:1], condition, **options)[0].sum(-1)

    soft = nn.functional.one_hot(tokens()[:1], V).double()
    jacobian = torch.autograd.functional.jacobian(output, soft)
    return jacobian[:, 0].abs().sum(-1) > 0


def full_mask(attention: Attention, length: int = L) -> torch.Tensor:
    index = torch.arange(length)
    mask = attention.mask(index, index)
    return torch.ones(length, length, dtype=torch.bool) if mask is None else mask


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        (Bidirectional(), torch.ones(L, L)),
        (Causal(), torch.ones(L, L).tril()),
        (BlockCausal(size=1), torch.ones(L, L).tril()),
        (BlockCausal(size=3), torch.kron(torch.ones(2, 2).tril(), torch.ones(3, 3))),
        (BlockCausal(size=99), torch.ones(L, L)),
    ],
)
def test_a_position_depends_on_what_its_pattern_shows(attention, expected):
    assert torch.equal(depends(build(attention)), expected.bool())


@pytest.mark.parametrize("attention", PATTERNS)
def test_documents_do_not_see_each_other(attention):
    documents = torch.tensor([[0, 0, 0, 1, 1, 2]])
    expected = full_mask(attention) & (documents == documents.T)
    assert torch.equal(depends(build(attention), Condition(documents=documents)), expected)


def test_a_mask_replaces_the_pattern():
    mask = torch.eye(L, dtype=torch.bool) | (torch.arange(L) == 0)
    assert torch.equal(depends(build(Causal()), mask=mask), mask)


@pytest.mark.parametrize("attention", PATTERNS)
def test_a_mask_equal_to_the_pattern_changes_nothing(attention):
    net = build(attention)
    masked = net(tokens(), times(), NOTHING, mask=full_mask(attention))
    torch.testing.assert_close(masked, net(tokens(), times(), NOTHING))


@pytest.mark.parametrize(
    ("attention", "steps"),
    [
        (Causal(), [1] * 6),
        (Causal(), [4, 2]),
        (Causal(), [6]),
        (BlockCausal(size=2), [2, 2, 2]),
        (BlockCausal(size=2), [4, 2]),
        (BlockCausal(size=4), [4, 2]),
        (Bidirectional(), [6]),
    ],
)
@pytest.mark.parametrize("documents", [None, torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 1, 2, 2, 2]])])
def test_a_cache_changes_nothing(attention, steps, documents):
    """Fed piece by piece, whole blocks at a time, positions get the outputs that they get at once."""
    net, x, t = build(attention), tokens(), times()
    cache, outputs, start = KeyValueCache(L), [], 0
    with torch.no_grad():
        for count in steps:
            piece = slice(start, start + count)
            seen = NOTHING if documents is None else Condition(documents=documents[:, piece])
            outputs.append(net(x[:, piece], t, seen, cache=cache))
            start += count
        whole = net(x, t, Condition(documents=documents))
    torch.testing.assert_close(torch.cat(outputs, 1), whole)
    assert cache.length == L


@pytest.mark.parametrize(
    "attention", [Causal(), BlockCausal(size=1), BlockCausal(size=3), BlockCausal(size=4)]
)
def test_a_mask_is_left_out_where_it_would_hide_nothing(attention):
    for past in range(9):
        for length in range(1, 9):
            key = torch.arange(past + length)
            hides = not bool(attention.mask(key[past:], key).all())
            assert attention.sees_all(past, length) is not hides


def test_a_truncated_cache_forgets():
    net, x, t = build(BlockCausal(size=2)), tokens(), times()
    cache = KeyValueCache(L)
    with torch.no_grad():
        net(x[:, :2], t, NOTHING, cache=cache)
        net(tokens(9)[:, 2:4], t, NOTHING, cache=cache)
        cache.truncate(2)
        again = net(x[:, 2:4], t, NOTHING, cache=cache)
        whole = net(x[:, :4], t, NOTHING)
    torch.testing.assert_close(again, whole[:, 2:])


def test_a_cache_says_when_it_is_full():
    net, cache = build(Causal()), KeyValueCache(3)
    with torch.no_grad(), pytest.raises(DiscdiffError, match="holds 3 positions and 6 are needed"):
        net(tokens(), times(), NOTHING, cache=cache)
    with pytest.raises(DiscdiffError, match="can't be cut to 5"):
        cache.truncate(5)


# Positions --------------------------------------------------------------------------------------------------


def test_only_relative_positions_matter():
    net = build()
    here = net(tokens(), times(), NOTHING)
    there = net(tokens(), times(), NOTHING, positions=torch.arange(L) + 1000)
    torch.testing.assert_close(here, there, rtol=1e-7, atol=1e-9)
    assert not torch.allclose(here, net(tokens(), times(), NOTHING, positions=torch.arange(L) * 2))


def test_positions_may_differ_by_row():
    net = build()
    positions = torch.stack([torch.arange(L), torch.arange(L).flip(0)])
    both = net(tokens(), times(), NOTHING, positions=positions)
    for row in range(B):
        alone = net(tokens()[row : row + 1], times()[row : row + 1], NOTHING, positions=positions[row])
        torch.testing.assert_close(both[row : row + 1], alone)


def test_a_doubled_sequence_repeats_its_positions():
    """Two copies that do not see each other, at the same positions: each is the sequence alone."""
    net, x = build(), tokens()
    mask = torch.kron(torch.eye(2), torch.ones(L, L)).bool()
    twice = net(x.repeat(1, 2), times(), NOTHING, mask=mask, positions=torch.arange(L).repeat(2))
    once = net(x, times(), NOTHING)
    torch.testing.assert_close(twice, once.repeat(1, 2, 1))


def test_rotation_keeps_lengths_and_turns_by_the_difference():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator, dtype=torch.float64) for _ in range(2))

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        return rotate(x, rotation(torch.tensor([position]), 8, torch.float64))

    torch.testing.assert_close(turned(q, 5).norm(), q.norm())
    torch.testing.assert_close((turned(q, 7) * turned(k, 3)).sum(), (turned(q, 4) * k).sum())
    torch.testing.assert_close(turned(q, 0), q)


# Time and class ---------------------------------------------------------------------------------------------


def test_a_time_per_position_acts_at_its_position():
    net = build()
    same = net(tokens(), times().expand(B, L), NOTHING)
    torch.testing.assert_close(same, net(tokens(), times(), NOTHING))
    alone = torch.eye(L, dtype=torch.bool)
    later = times().expand(B, L).clone()
    later[:, 2] = 0.99
    before = net(tokens(), times().expand(B, L), NOTHING, mask=alone)
    change = (net(tokens(), later, NOTHING, mask=alone) - before).abs().amax(-1)
    assert (change > 1e-9).tolist() == [[i == 2 for i in range(L)]] * B


def test_a_time_agnostic_network_has_nothing_of_time():
    net = build(time=False)
    assert torch.equal(net(tokens(), times(), NOTHING), net(tokens(), 1 - times(), NOTHING))
    assert not any("time" in name or "modulation.weight" in name for name, _ in net.named_parameters())
    aware = build()
    assert not torch.equal(aware(tokens(), times(), NOTHING), aware(tokens(), 1 - times(), NOTHING))


def test_at_initialization_time_does_nothing_and_logits_are_zero():
    torch.manual_seed(0)
    net = Transformer(layers=2, width=16, heads=2, labels=3).build(V, V)
    one = net.trunk(tokens(), times(), Condition(labels=torch.tensor([0, 1])))
    other = net.trunk(tokens(), 1 - times(), NOTHING)
    assert torch.equal(one, other)
    assert torch.equal(net.head(one), torch.zeros(B, L, V))


def test_times_close_to_each_other_are_told_apart():
    net = build()
    near = net(tokens(), times() + 1e-4, NOTHING) - net(tokens(), times(), NOTHING)
    assert near.abs().max() > 1e-6


@pytest.mark.parametrize("time", [True, False])
def test_labels(time):
    net = build(labels=3, time=time)
    none = net(tokens(), times(), NOTHING)
    assert torch.equal(none, net(tokens(), times(), Condition(labels=torch.tensor([-1, -1]))))
    mixed = net(tokens(), times(), Condition(labels=torch.tensor([2, -1])))
    assert not torch.allclose(mixed[0], none[0])
    torch.testing.assert_close(mixed[1], none[1])


def test_labels_for_a_network_without_classes_are_refused():
    with pytest.raises(DiscdiffError, match="set the backbone's labels"):
        build()(tokens(), times(), Condition(labels=torch.tensor([0, 0])))


# Parts ------------------------------------------------------------------------------------------------------


def test_the_network_is_head_after_trunk():
    net = build()
    assert isinstance(net, Network)
    assert torch.equal(net(tokens(), times(), NOTHING), net.head(net.trunk(tokens(), times(), NOTHING)))
    assert (net.width, net.outputs, net.vocab) == (16, V, V)
    assert Transformer(width=16, heads=2).build(V + 1, 2 * V, vocab=V).vocab == V


def test_rows_do_not_see_each_other():
    net = build()
    both = net(tokens(), times(), NOTHING)
    torch.testing.assert_close(both[:1], net(tokens()[:1], times()[:1], NOTHING))


def test_a_soft_token_that_is_certain_is_the_token():
    net = build()
    soft = nn.functional.one_hot(tokens(), V).double()
    torch.testing.assert_close(net(soft, times(), NOTHING), net(tokens(), times(), NOTHING))


def test_an_embedding_of_ones_own_reads_what_it_likes():
    embedding = nn.Linear(3, 16)
    net = Transformer(width=16, heads=2).build(3, 5, embedding=embedding)
    assert net(torch.randn(B, L, 3), times(), NOTHING).shape == (B, L, 5)


def test_a_tied_head_is_the_embedding():
    net = Transformer(width=16, heads=2, tied=True).build(V + 1, V)
    assert net.head.weight is net.trunk.embedding.weight
    assert net(tokens(), times(), NOTHING).shape == (B, L, V)
    untied = Transformer(width=16, heads=2).build(V + 1, V)
    count = [sum(p.numel() for p in one.parameters()) for one in (net, untied)]
    assert count[1] - count[0] == V * 16


def test_a_head_that_cannot_be_tied_is_refused():
    with pytest.raises(DiscdiffError, match="set tied=False"):
        Transformer(width=16, heads=2, tied=True).build(V, V + 1)


def test_logits_are_float32_when_the_trunk_is_bfloat16():
    net = build().float()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = net.trunk(tokens(), times(), NOTHING)
        low = net.head(hidden.bfloat16())
        logits = net(tokens(), times(), NOTHING)
    exact = nn.functional.linear(hidden.bfloat16().double(), net.head.weight.double())
    torch.testing.assert_close(low.double(), exact, rtol=1e-5, atol=1e-5)
    assert logits.dtype == torch.float32
    assert (logits - net(tokens(), times(), NOTHING)).abs().max() < 0.1 * logits.abs().max()


@pytest.mark.parametrize("attention", PATTERNS)
def test_every_parameter_has_a_finite_gradient(attention):
    net = build(attention, labels=3)
    net(tokens(), times(), Condition(labels=torch.tensor([0, -1]))).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.abs().sum() > 0, name


def test_dropout_is_for_training_alone():
    net = build(dropout=0.5)
    assert torch.equal(net(tokens(), times(), NOTHING), net(tokens(), times(), NOTHING))
    net.train()
    assert not torch.equal(net(tokens(), times(), NOTHING), net(tokens(), times(), NOTHING))


def test_signals_keep_their_size_at_initialization():
    """The residual stream neither dies nor explodes with depth, at any width."""
    for layers, width in [(1, 32), (16, 32), (4, 256)]:
        torch.manual_seed(0)
        net = Transformer(layers=layers, width=width, heads=4).build(V, V)
        sizes: list[float] = []
        for block in net.trunk.blocks:
            block.register_forward_hook(lambda _, __, out, to=sizes: to.append(out.std().item()))
        net(torch.randint(0, V, (4, 32)), torch.rand(4, 1).double(), NOTHING)
        assert 0.1 < sizes[-1] < 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 10, "heads": 4}, "take a width that is a multiple of 8"),
        ({"width": 6, "heads": 2}, "multiple of 4"),
        ({"layers": 0}, "layers"),
        ({"dropout": 1.0}, "dropout"),
        ({"depth": 3}, "depth"),
    ],
)
def test_a_wrong_shape_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Transformer(**fields)


def test_a_transformer_round_trips():
    backbone = Transformer(layers=3, width=24, heads=2, time=False, tied=True, labels=5, dropout=0.1)
    assert Transformer.model_validate_json(backbone.model_dump_json()) == backbone
