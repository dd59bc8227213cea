"""Sample metrics against brute force, known values and their invariances."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from discdiff.evaluation.diversity import distinct, entropy, pooled_entropy, repetition, self_bleu
from discdiff.evaluation.estimate import Estimate
from discdiff.evaluation.judge import HuggingFace, Own, Reading, judged
from discdiff.evaluation.laws import distance
from discdiff.evaluation.mauve import Mauve, kmeans
from discdiff.evaluation.novelty import matches
from discdiff.evaluation.quality import quality, with_training
from discdiff.evaluation.sequences import Sequences, sequences
from discdiff.evaluation.spelling import spelled, words
from discdiff.methods import Autoregressive, Mdlm
from discdiff.networks import Transformer
from discdiff.noise import Noise
from discdiff.oracle import Law
from discdiff.types import DiscdiffError, canvas

ROWS = st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=2, max_size=5).filter(any)


def of(rows: list[list[int]], vocab: int = 3) -> Sequences:
    return sequences([np.array(row, np.int64) for row in rows], vocab)


def grams(row: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]


# N-grams


@given(ROWS, st.integers(1, 5), st.sampled_from([3, 2**31]))
@settings(deadline=None, max_examples=40)
def test_ngram_keys_are_equal_just_where_ngrams_are(rows, n, vocab):
    keys, owners = of(rows, vocab).ngrams(n)
    named = [(i, g) for i, row in enumerate(rows) for g in grams(row, n)]
    assert owners.tolist() == [i for i, _ in named]
    assert len(set(keys.tolist())) == len({g for _, g in named})
    assert len(set(zip(keys.tolist(), (g for _, g in named), strict=True))) == len({g for _, g in named})


@given(ROWS, st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_distinct_and_repetition_are_their_definitions(rows, n):
    every = [g for row in rows for g in grams(row, n)]
    assert distinct(of(rows), n) == pytest.approx(len(set(every)) / len(every) if every else 0.0)
    shares = [1 - len(set(found)) / len(found) for row in rows if (found := grams(row, n))]
    assert repetition(of(rows), n).value == pytest.approx(float(np.mean(shares)) if shares else 0.0)


def brute_self_bleu(rows: list[list[int]], n: int) -> float:
    """Papineni's definition, one candidate at a time."""
    scores = []
    for i, row in enumerate(rows):
        others = [other for j, other in enumerate(rows) if j != i]
        product = 1.0
        for order in range(1, n + 1):
            counts = Counter(grams(row, order))
            most = {g: max(Counter(grams(other, order))[g] for other in others) for g in counts}
            total = sum(counts.values())
            product *= sum(min(c, most[g]) for g, c in counts.items()) / total if total else 0.0
        closest = min((abs(len(other) - len(row)), len(other)) for other in others)[1]
        brevity = 1.0 if len(row) >= closest else math.exp(1 - closest / len(row)) if row else 0.0
        scores.append(brevity * product ** (1 / n))
    return float(np.mean(scores))


@given(ROWS, st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_self_bleu_is_bleu_against_all_others(rows, n):
    assert self_bleu(of(rows), n).value == pytest.approx(brute_self_bleu(rows, n), abs=1e-12)


def test_self_bleu_is_one_for_copies_and_zero_for_strangers():
    assert self_bleu(of([[0, 1, 2, 0, 1]] * 3)).value == pytest.approx(1.0)
    assert self_bleu(of([[0] * 6, [1] * 6, [2] * 6])).value == 0.0


# Entropy


def test_entropy_of_known_frequencies():
    rows = of([[0, 0, 1, 1], [2, 2, 2, 2]])
    assert entropy(rows).value == pytest.approx(math.log(2) / 2)
    assert pooled_entropy(rows) == pytest.approx(0.5 * math.log(4) + 0.5 * math.log(2))


def test_repeating_samples_under_the_data_are_warned_of():
    generator = np.random.default_rng(0)
    real = quality(sequences(generator.integers(0, 20, (16, 64)), 20))
    stuck = quality(sequences(np.repeat(generator.integers(0, 20, (16, 8)), 8, axis=1), 20))
    (found,) = [w for w in stuck.beside(real).warnings if w.startswith("entropy")]
    assert "under the data's" in found
    assert real.beside(real).warnings == ()
    fewer = quality(sequences(generator.integers(0, 20, (4, 64)), 20))
    assert any("depend on the amount" in w for w in fewer.beside(real).warnings)


# Novelty


def longest(row: list[int], at: int, training: list[int], most: int) -> int:
    length = 0
    while (
        at + length < len(row)
        and length < most
        and any(training[i : i + length + 1] == row[at : at + length + 1] for i in range(len(training)))
    ):
        length += 1
    return length


@given(ROWS, st.lists(st.integers(0, 2), max_size=30), st.integers(0, 4), st.integers(0, 3))
@settings(deadline=None, max_examples=80)
def test_matches_are_the_longest_in_the_training_text(rows, training, cut, levels):
    pieces = [np.array(training[:cut], np.int64), np.array(training[cut:], np.int64)]
    found = matches(of(rows), pieces, levels=levels)
    expected = [longest(row, at, training, 2**levels) for row in rows for at in range(len(row))]
    assert found.lengths.tolist() == expected


def test_matches_cross_the_pieces_in_which_training_text_comes(monkeypatch):
    from discdiff.evaluation import novelty

    monkeypatch.setattr(novelty, "_PIECE", 50)
    generator = np.random.default_rng(0)
    training = generator.integers(0, 3, 500)
    samples = of([training[35:75].tolist(), generator.integers(0, 3, 40).tolist()])
    whole = matches(samples, [training])
    assert whole.lengths[0] == 40
    cut = matches(samples, np.split(training, [7, 120, 121, 300]))
    monkeypatch.setattr(novelty, "_PIECE", 10**6)
    assert np.array_equal(whole.lengths, matches(samples, [training]).lengths)
    assert np.array_equal(cut.lengths, whole.lengths)


@given(ROWS, st.lists(st.integers(0, 2), max_size=30))
@settings(deadline=None, max_examples=30)
def test_seen_is_the_share_of_ngrams_in_training(rows, training):
    found = matches(of(rows), [np.array(training, np.int64)], levels=3)
    for n in (1, 2, 4):
        every, known = [g for row in rows for g in grams(row, n)], set(grams(training, n))
        assert found.seen(n) == pytest.approx(np.mean([g in known for g in every]) if every else 0.0)
    assert found.copied().tolist() == [
        max([longest(row, at, training, 8) for at in range(len(row))], default=0) for row in rows
    ]


def test_rows_measured_together_are_as_measured_alone():
    generator = np.random.default_rng(3)
    sets = [sequences(generator.integers(0, 4, (5, 30)), 4), sequences(generator.integers(0, 4, (3, 20)), 4)]
    training = generator.integers(0, 4, 400)
    both = with_training([quality(each) for each in sets], sets, [training])
    alone = [with_training([quality(each)], [each], [training])[0] for each in sets]
    assert both == alone


# Spelling


def test_spelling_counts_whole_words_only():
    known = words(["the cat sat", "Über-cool"])
    assert known == {"the", "cat", "sat", "Über", "cool"}
    assert spelled(["xthe cat zat sat the"], known).value == pytest.approx(2 / 3)  # cut: xthe, the
    assert spelled([" the ", " 123 "], known).value == 1.0


# Known laws


def test_distance_of_the_law_itself_is_zero_and_of_another_known():
    rows = of([[0, 0], [0, 1], [1, 0], [1, 1]], vocab=2)
    even = distance(rows, np.full((2, 2), 0.25))
    assert (even.tv, even.kl) == (0.0, 0.0)
    skewed = distance(rows, np.array([[0.5, 0.25], [0.125, 0.125]]))
    assert skewed.tv == pytest.approx(0.25)
    assert skewed.kl == pytest.approx(0.25 * math.log(0.25**4 / (0.5 * 0.25 * 0.125**2)))
    assert distance(rows, np.array([[1.0, 0], [0, 0]])).kl == math.inf


def test_exact_samples_are_as_far_as_expected():
    law = Law.random(vocab=2, length=4, seed=3)
    p = law.log_p.exp().numpy()
    generator, found = np.random.default_rng(0), []
    for _ in range(60):
        drawn = law.sequences.numpy()[generator.choice(len(p), 500, p=p)]
        found.append(distance(sequences(drawn, 2), p.reshape((2,) * 4)))
    assert np.mean([d.tv for d in found]) == pytest.approx(found[0].tv_exact, rel=0.05)
    assert np.mean([d.kl for d in found]) == pytest.approx(found[0].kl_exact, rel=0.15)


def test_a_law_of_another_shape_is_refused():
    with pytest.raises(DiscdiffError, match="the law is over 3 tokens"):
        distance(of([[0, 1]], vocab=2), np.full((2, 2, 2), 1 / 8))


# MAUVE


def test_mauve_of_equal_histograms_is_one_and_of_disjoint_ones_known():
    p = np.array([0.2, 0.3, 0.5, 0, 0])
    q = np.array([0, 0, 0, 0.6, 0.4])
    assert Mauve().area(p, p) == pytest.approx(1.0, abs=1e-12)
    # Disjoint: ((1 - a)^c, a^c), whose area is c B(c, c + 1) = 1 / binomial(2c, c).
    assert Mauve(points=4001).area(p, q) == pytest.approx(1 / math.comb(10, 5), rel=1e-4)
    assert Mauve(points=4001, scaling=2).area(p, q) == pytest.approx(1 / math.comb(4, 2), rel=1e-4)
    # The paper's implementation, with its 25 points, returns this number for disjoint sets.
    assert Mauve().area(p, q) == pytest.approx(0.0040720962619612555, rel=1e-9)


@given(
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.lists(st.floats(0.01, 1), min_size=3, max_size=3)
)
@settings(deadline=None, max_examples=30)
def test_mauve_is_symmetric_and_between_its_ends(a, b):
    p, q = (np.array(each) / sum(each) for each in (a, b))
    area = Mauve().area(p, q)
    assert area == pytest.approx(Mauve().area(q, p), rel=1e-9)
    assert 0.004 < area <= 1 + 1e-12


def test_mauve_tells_near_from_far_and_does_not_mind_order():
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(4, 8))
    p, q = (centers[generator.integers(0, 4, 200)] + 0.05 * generator.normal(size=(200, 8)) for _ in "pq")
    far = -q
    metric = Mauve(clusters=8)
    near = metric.compare(p, q)
    assert near > 0.9
    assert metric.compare(p, far) == pytest.approx(Mauve().area(np.array([1.0, 0]), np.array([0, 1.0])))
    assert metric.compare(p[::-1], q) == pytest.approx(near, abs=0.05)


def test_kmeans_finds_what_is_far_apart():
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 5, 300)
    points = 10 * generator.normal(size=(5, 3))[truth] + 0.01 * generator.normal(size=(300, 3))
    labels = kmeans(points, 5, starts=5, seed=0)
    assert len({(a, b) for a, b in zip(truth, labels, strict=True)}) == 5


def test_mauve_warns_of_few_or_short_texts_and_refuses_none():
    assert len(Mauve().warnings(32, 64)) == 2
    assert Mauve().warnings(5000, 512) == []
    with pytest.raises(DiscdiffError, match="two texts or more"):
        Mauve().compare(np.zeros((1, 4)), np.zeros((5, 4)))


# Judges


def test_the_corpus_perplexity_is_not_the_mean_of_samples():
    reading = Reading(np.array([math.log(2.0), 9 * math.log(8.0)]), np.array([1, 9]), np.zeros((2, 1)))
    found = judged(HuggingFace("gpt2"), reading, None, Mauve())
    assert found.perplexity.value == pytest.approx(2 ** ((1 + 27) / 10))
    assert found.sample_mean.value == pytest.approx(5.0)
    assert found.mauve is None


def test_an_own_judge_reads_every_sample_alone():
    method, law = Autoregressive(), Law.random(vocab=3, length=4, seed=1)
    torch.manual_seed(0)
    net = method.network(Transformer(layers=1, width=16, heads=2), 3)
    judge, texts = Own("ar", method, net, "tok"), canvas(law.sequences[:20])
    with torch.no_grad():
        direct = method.bound(net, texts, Noise(0))
    whole = judge.read([texts], [])
    parts = judge.read([texts.narrow(0, 7), texts.narrow(7, 20)], [])
    assert np.allclose(whole.nats, direct.numpy(), atol=1e-5)
    assert np.allclose(parts.nats, whole.nats, atol=1e-5)
    assert np.allclose(parts.features, whole.features, atol=1e-5)
    assert whole.tokens.tolist() == [4] * 20
    # The feature has read the last token too: it differs between texts that differ in nothing else.
    assert not np.allclose(whole.features[0], whole.features[1], atol=1e-3)


def test_a_judge_of_another_vocabulary_or_with_a_bound_only_is_refused():
    net = torch.nn.Identity()
    with pytest.raises(DiscdiffError, match="another vocabulary"):
        Own("ar", Autoregressive(), net, "aaaa").check("bbbb")
    with pytest.raises(DiscdiffError, match="a judge must be autoregressive"):
        Own("mdlm", Mdlm(), net, "aaaa").check("aaaa")


def test_a_hugging_face_judge_reads_texts_of_any_length(tmp_path):
    hugging = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install transformers"
    )
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {word: i for i, word in enumerate(["<s>", "a", "b", "c", "[UNK]"])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = hugging.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<s>")
    tokenizer.save_pretrained(tmp_path)
    shape = hugging.GPT2Config(vocab_size=5, n_layer=1, n_head=2, n_embd=8, n_positions=32, eos_token_id=0)
    model = hugging.GPT2LMHeadModel(shape).eval()
    model.save_pretrained(tmp_path)
    found = HuggingFace(str(tmp_path), batch=2, context=32).read([], ["a b c", "c", "a a a b"])
    with torch.no_grad():
        out = model(torch.tensor([[0, 1, 2, 3]]), output_hidden_states=True)
    nats = -out.logits[0, :-1].log_softmax(-1)[range(3), [1, 2, 3]].sum()
    assert found.nats[0] == pytest.approx(nats.item(), rel=1e-5)
    assert found.tokens.tolist() == [3, 1, 4]
    assert np.allclose(found.features[0], out.hidden_states[-1][0, -1].numpy(), atol=1e-5)


def test_a_hugging_face_judge_without_its_files_or_package_says_so(tmp_path):
    with pytest.raises(DiscdiffError, match=r"transformers|cannot be opened"):
        HuggingFace(str(tmp_path / "none")).read([], ["text"])


# Bad input


def test_no_samples_and_foreign_ids_are_refused():
    for nothing in ([], [np.array([], np.int64)]):
        with pytest.raises(DiscdiffError, match="sample set is empty"):
            sequences(nothing, 3)
    for bad in (3, -1):
        with pytest.raises(DiscdiffError, match=f"token id {bad} is not of this vocabulary: ids are 0 to 2"):
            of([[0, bad]])


def test_quality_is_what_its_parts_are():
    rows = of([[0, 1, 2, 1], [2, 2, 2, 0], [1, 1, 0, 2]])
    found = quality(rows)
    assert (found.sequences, found.tokens, found.length) == (3, 12, 4.0)
    assert found.distinct == {n: distinct(rows, n) for n in (1, 2, 3, 4)}
    assert isinstance(found.entropy, Estimate)
    assert list(itertools.chain(found.warnings)) == []
