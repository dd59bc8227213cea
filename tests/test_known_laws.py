"""Laws of known entropy: against enumeration, against each other, against their samples."""

import itertools
import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from discdiff.data.corpora import AnyCorpus
from discdiff.data.laws import AnyLaw, Grammar, HiddenMarkov, KnownLaw, Law, MarkovChain, Rule
from discdiff.data.tokenizers import Symbols
from discdiff.noise import Noise
from discdiff.types import DiscdiffError

CHAIN = MarkovChain.random(3, seed=5, contrast=2.0)
BIASED = MarkovChain(transition=((0.9, 0.1), (0.2, 0.8)), initial=(1.0, 0.0))
NOISY = HiddenMarkov(
    transition=((0.5, 0.5), (0.3, 0.7)), emission=((0.8, 0.1, 0.1), (0.05, 0.05, 0.9)), initial=(0.25, 0.75)
)
EVEN = HiddenMarkov(  # the even process: tokens tell the state
    transition=((0.5, 0.5), (1.0, 0.0)), emission=((0.0, 1.0), (1.0, 0.0))
)
BRACKETS = Grammar(
    rules=(
        Rule(head="S", body=("(", "S", ")"), weight=0.3),
        Rule(head="S", body=("[", "S", "T", "]"), weight=0.1),
        Rule(head="S", body=("x",), weight=0.4),
        Rule(head="S", body=("T", "."), weight=0.2),
        Rule(head="T", body=("a", "T"), weight=1),
        Rule(head="T", body=("b",), weight=3),
    )
)
RULE_T, RULE_U = Rule(head="T", body=("a",)), Rule(head="T", body=("b",))
LAWS: list[AnyLaw] = [CHAIN, BIASED, NOISY, EVEN, BRACKETS]


def every(vocab: int, length: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(vocab), repeat=length))).reshape(-1, length)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.kind)
@pytest.mark.parametrize("length", [1, 2, 4])
def test_probabilities_sum_to_one_and_entropy_is_that_of_the_enumeration(law: KnownLaw, length: int) -> None:
    log_p = law.log_prob(every(law.vocab, length))
    p = log_p.exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert law.entropy(length) == pytest.approx(-torch.special.xlogy(p, p).sum().item(), abs=1e-11)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.kind)
def test_samples_follow_the_law(law: KnownLaw) -> None:
    """Chi-square of 4,000 samples of length 3 at a chance of 1e-6 of failing."""
    count, length = 4000, 3
    states = every(law.vocab, length)
    p = law.log_prob(states).exp()
    drawn = law.sample(Noise(11, rows=torch.arange(count)), length)
    places = (drawn * law.vocab ** torch.arange(length - 1, -1, -1)).sum(1)
    seen = torch.bincount(places, minlength=len(states)).double()
    assert (seen[p == 0] == 0).all()
    common = p * count >= 5
    expected, found = p[common] * count, seen[common]
    rest = torch.stack([count - expected.sum(), count - found.sum()])
    chi2 = ((found - expected) ** 2 / expected).sum() + (rest[1] - rest[0]) ** 2 / rest[0].clamp_min(5)
    from scipy.stats import chi2 as distribution

    assert chi2.item() < distribution.isf(1e-6, int(common.sum()))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.kind)
def test_a_sample_depends_on_its_row_alone(law: KnownLaw) -> None:
    together = law.sample(Noise(3, rows=torch.arange(10)), 20)
    alone = law.sample(Noise(3, rows=torch.tensor([7])), 20)
    assert torch.equal(together[7:8], alone)
    assert not torch.equal(together, law.sample(Noise(4, rows=torch.arange(10)), 20))


@pytest.mark.parametrize(
    ("law", "length"), [(CHAIN, 60), (BIASED, 60), (NOISY, 9), (EVEN, 60)], ids=lambda value: str(value)[:13]
)
def test_the_entropy_rate_is_the_limit_of_the_growth(law: KnownLaw, length: int) -> None:
    growth = law.entropy(length + 1) - law.entropy(length)
    assert growth == pytest.approx(law.entropy_rate, abs=1e-7)


def test_the_growth_of_a_grammar_averages_to_its_rate() -> None:
    """Sentences of one or two tokens: the growth settles as the renewals mix."""
    coin = Grammar(rules=(Rule(head="S", body=("a",)), Rule(head="S", body=("b", "T")), RULE_T, RULE_U))
    assert coin.entropy(101) - coin.entropy(100) == pytest.approx(coin.entropy_rate, abs=1e-10)
    assert coin.entropy_rate == pytest.approx(1.5 * math.log(2) / 1.5, abs=1e-12)


def test_the_rate_of_a_recursive_grammar_is_that_of_long_streams() -> None:
    """Renewal theory against the average of log p over long samples: within 5 standard errors."""
    length = 2000
    log_p = BRACKETS.log_prob(BRACKETS.sample(Noise(2, rows=torch.arange(64)), length)) / length
    error = log_p.std().item() / 8
    assert -log_p.mean().item() == pytest.approx(BRACKETS.entropy_rate, abs=5 * error)
    assert error < 0.01


def test_a_hidden_chain_that_shows_its_state_is_the_chain() -> None:
    states = tuple(tuple(float(i == j) for j in range(3)) for i in range(3))
    hidden = HiddenMarkov(transition=CHAIN.transition, emission=states)
    tokens = every(3, 4)
    assert hidden.entropy_rate == pytest.approx(CHAIN.entropy_rate, abs=1e-9)
    assert hidden.entropy(9) == pytest.approx(CHAIN.entropy(9), abs=1e-10)
    torch.testing.assert_close(hidden.log_prob(tokens), CHAIN.log_prob(tokens))


def test_the_even_process_has_its_textbook_rate() -> None:
    """Stationary (2/3, 1/3), a fair coin in the first state, none in the second."""
    assert EVEN.entropy_rate == pytest.approx(2 / 3 * math.log(2), abs=1e-9)
    assert EVEN.entropy(200) == pytest.approx(EVEN.entropy(100) + 100 * EVEN.entropy_rate, abs=1e-8)


def test_a_fair_coin_has_log_two_a_token() -> None:
    coin = MarkovChain(transition=((0.5, 0.5), (0.5, 0.5)))
    assert coin.entropy(10) == pytest.approx(10 * math.log(2), abs=1e-12)
    assert coin.entropy(0) == 0


def test_entropy_that_would_have_to_be_estimated_is_refused() -> None:
    slow = HiddenMarkov(
        transition=((0.9, 0.05, 0.05), (0.02, 0.97, 0.01), (0.01, 0.04, 0.95)),
        emission=((0.4, 0.3, 0.2, 0.1), (0.1, 0.25, 0.3, 0.35), (0.3, 0.1, 0.35, 0.25)),
    )
    assert slow.entropy(4) > 0
    with pytest.raises(DiscdiffError, match="beliefs"):
        slow.entropy(40)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MarkovChain(transition=((0.5, 0.6), (0.5, 0.5))), "distribution"),
        (lambda: MarkovChain(transition=((1.0,), (1.0,))), "entries"),
        (lambda: MarkovChain(transition=((0.5, 0.5), (0.5, 0.5)), initial=(1.0,)), "2 entries"),
        (lambda: HiddenMarkov(transition=((1.0,),), emission=((0.5, 0.5), (0.5, 0.5))), "each of 1 states"),
        (lambda: Grammar(rules=(Rule(head="A", body=("x",)),)), "start symbol 'S'"),
        (lambda: Grammar(rules=(Rule(head="S", body=("S", "x")),)), "begins with itself"),
        (lambda: Grammar(rules=(Rule(head="S", body=("x",)), Rule(head="S", body=("x", "y")))), "same token"),
        (lambda: Grammar(rules=(Rule(head="S", body=("x", "S")),)), "do not end"),
        (lambda: Rule(head="S", body=()), "at least 1"),
    ],
)
def test_what_is_no_law_is_refused(make, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make()


def test_a_chain_in_two_parts_has_no_one_stationary_distribution() -> None:
    with pytest.raises(DiscdiffError, match="more than one"):
        MarkovChain(transition=((1.0, 0.0), (0.0, 1.0))).entropy_rate  # noqa: B018


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.kind)
def test_laws_survive_json(law: AnyLaw) -> None:
    adapter = TypeAdapter(AnyLaw)
    assert adapter.validate_json(adapter.dump_json(law)) == law
    assert hash(law) == hash(adapter.validate_json(adapter.dump_json(law)))


def test_a_corpus_of_a_law_is_its_samples_under_the_tokenizer_of_symbols() -> None:
    corpus = Law(law=CHAIN, length=16, train=600, validation=5, test=3, seed=9)
    tokenizer = Symbols(size=3).open()
    plan = corpus.plan(size=16 * 250)
    assert [span.split for span in plan] == ["train"] * 3 + ["validation", "test"]
    documents = [text for span in plan if span.split == "train" for text in corpus.documents(span)]
    encoded = tokenizer.encode_batch(documents)
    expected = CHAIN.sample(Noise(9, rows=torch.arange(600)), 16)
    assert torch.equal(torch.from_numpy(encoded.ids.astype("int64")).reshape(600, 16), expected)
    assert tokenizer.decode(encoded.ids) == "".join(documents)


def test_more_training_documents_leave_the_others_as_they_are() -> None:
    small, large = (Law(law=BIASED, length=8, train=n, validation=4) for n in (10, 1000))
    assert list(small.documents(small.plan()[-1])) == list(large.documents(large.plan()[-1]))
    train = set(large.documents(large.plan()[0]))
    assert isinstance(large, TypeAdapter(AnyCorpus).validate_json(large.model_dump_json()).__class__)
    assert len(train) > 1
