"""Tokenizers: nothing is lost, nothing in the text is read as a separator, and fast means exact."""

import json
import sysconfig
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFace
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from discdiff.data.bpe import Bpe, train_bpe
from discdiff.data.bytepairs import BytePairs
from discdiff.data.encoding import SEPARATOR, Encoded, Tokenizer, offsets_of
from discdiff.data.files import Files
from discdiff.data.pretrained import Audit, Fast, Pretrained, PretrainedTokenizer, Reference
from discdiff.data.probes import PROBES
from discdiff.data.pythondocs import PythonDocs
from discdiff.data.spelling import Speller, pieces_of
from discdiff.data.tokenizers import Bytes, Characters, Symbols, Text8, from_json
from discdiff.types import DiscdiffError

TEXT = st.text(st.characters(exclude_categories=("Cs",)))
LINES = Files(url=__file__, suffix=".txt", separator="\n")
UGLY = st.lists(
    st.sampled_from([*PROBES[:4000:37], "<|endoftext|>", "é", "e\u0301", "\r\n", " " * 7, "Ⅷ", "👩‍👩‍👧"])
)


@pytest.fixture(scope="session")
def definition() -> str:
    """A byte-level BPE of Python's documentation, as tokenizer.json."""
    return train_bpe(Bpe(size=1000))


@pytest.fixture(scope="session")
def bpe(definition: str) -> PretrainedTokenizer:
    return PretrainedTokenizer(definition)


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Source files of the standard library: real text, with all that a word cutter can trip over."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = [*sorted(folder.glob("*.py"))[:40], *sorted(folder.glob("encodings/*.py"))[:20]]
    return [*(path.read_text("utf-8") for path in found), *PROBES]


def reencoded(tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    ids, offsets = tokenizer.encode_batch(texts)
    return [tokenizer.decode(ids[a:b]) for a, b in pairwise(offsets)]


@given(st.lists(TEXT | UGLY.map("".join), max_size=6))
@settings(max_examples=60, deadline=None)
def test_every_tokenizer_gives_documents_back(bpe: PretrainedTokenizer, texts: list[str]) -> None:
    known = [Bytes().open(), bpe]
    if any(texts):
        known.append(Characters().train(texts))
    for tokenizer in known:
        ids, offsets = tokenizer.encode_batch(texts)
        assert reencoded(tokenizer, texts) == texts
        assert offsets[0] == 0
        assert offsets[-1] == len(ids)
        assert not (ids == tokenizer.separator).any()
        assert not len(ids) or ids.max() < tokenizer.size


@given(UGLY.map("".join) | TEXT)
@settings(max_examples=150, deadline=None)
def test_the_fast_encoder_is_the_reference_on_ugly_strings(bpe: PretrainedTokenizer, text: str) -> None:
    reference = HuggingFace.from_str(bpe.definition)
    reference.encode_special_tokens = True
    assert bpe.engine == "bytepairs"
    assert bpe.encode_batch([text]).ids.tolist() == reference.encode(text, add_special_tokens=False).ids


def test_the_fast_encoder_is_the_reference_on_real_files(
    bpe: PretrainedTokenizer, definition: str, documents: list[str]
) -> None:
    encoded, audit = bpe.encode_audited(documents)
    exact = Reference(definition).encode(documents)
    np.testing.assert_array_equal(encoded.ids, exact.ids)
    np.testing.assert_array_equal(encoded.offsets, exact.offsets)
    assert audit == Audit(len(documents), len(documents), audit.sampled, 0, 0)
    assert audit.sampled > 0
    assert sum(map(len, documents)) > 1_000_000


class Faulty(Fast):
    """The fast encoder with a fault in the documents that hold a word."""

    name = "faulty"

    def __init__(self, definition: str, fault, word: str):
        super().__init__(definition, pieces_of(json.loads(definition)))
        self._fault, self._word = fault, word

    def encode(self, documents):
        parts = [super(Faulty, self).encode([text]).ids for text in documents]
        parts = [
            self._fault(ids) if self._word in text else ids
            for ids, text in zip(parts, documents, strict=True)
        ]
        return Encoded(np.concatenate(parts), offsets_of([len(ids) for ids in parts]))


FAULTS = {
    "lost": lambda ids: ids[:-1],
    "doubled": lambda ids: np.repeat(ids, 2),
    "swapped": lambda ids: ids[::-1].copy(),
    "changed": lambda ids: np.where(np.arange(len(ids)) == len(ids) // 2, ids[-1] ^ 1, ids).astype(ids.dtype),
    "control": lambda ids: np.append(ids, 0).astype(ids.dtype),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_document_that_is_not_spelled_by_its_ids_is_encoded_by_the_reference(
    definition: str, bpe: PretrainedTokenizer, fault: str
) -> None:
    texts = [f"document {i} with a {'needle' if i in (3, 7) else 'straw'} in it" for i in range(10)]
    tokenizer = PretrainedTokenizer(definition)
    tokenizer.__dict__["_engine"] = Faulty(definition, FAULTS[fault], "needle")
    encoded, audit = tokenizer.encode_audited(texts)
    np.testing.assert_array_equal(encoded.ids, bpe.encode_batch(texts).ids)
    assert (audit.documents, audit.spelled, audit.differed, audit.reference) == (10, 8, 2, 2)


def test_another_cut_of_the_same_text_is_found_by_the_sample(
    definition: str, bpe: PretrainedTokenizer
) -> None:
    """Ids that spell the text in other tokens pass the proof; the sampled comparison sees them."""
    pieces = pieces_of(json.loads(definition))
    assert pieces is not None
    single = {piece: index for index, piece in enumerate(pieces) if len(piece) == 1}
    texts = [f"text number {i} of some length" for i in range(3000)]

    def letters(ids: np.ndarray) -> np.ndarray:
        spelled = b"".join(pieces[i] for i in ids)
        return np.array([single[spelled[i : i + 1]] for i in range(len(spelled))], np.uint32)

    tokenizer = PretrainedTokenizer(definition)
    tokenizer.__dict__["_engine"] = Faulty(definition, letters, "number")
    encoded, audit = tokenizer.encode_audited(texts)
    assert audit.sampled > 0
    assert audit.differed == audit.reference == 3000
    np.testing.assert_array_equal(encoded.ids, bpe.encode_batch(texts).ids)


def test_an_engine_that_fails_a_probe_is_not_used(definition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, exact = Fast.encode, BytePairs.encode

    def without_zero_bytes(self: BytePairs, texts: list[bytes]) -> tuple[Encoded, list[int]]:
        return exact(self, [text.replace(b"\x00", b"") for text in texts])

    monkeypatch.setattr(BytePairs, "encode", without_zero_bytes)
    assert PretrainedTokenizer(definition).engine == "fastokens"
    monkeypatch.setattr(
        Fast, "encode", lambda self, texts: fast(self, [text.replace("\x00", "") for text in texts])
    )
    tokenizer = PretrainedTokenizer(definition)
    assert tokenizer.engine.startswith("tokenizers")
    encoded, audit = tokenizer.encode_audited(["a\x00b"])
    assert tokenizer.decode(encoded.ids) == "a\x00b"
    assert audit == Audit(documents=1, reference=1)


def unusual(model: models.Model, trainer: trainers.Trainer) -> str:
    tokenizer = HuggingFace(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    topics = PythonDocs()
    tokenizer.train_from_iterator(topics.documents(topics.plan()[0]), trainer)
    return tokenizer.to_str()


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_any_tokenizer_gives_what_the_reference_gives(kind: str) -> None:
    special = ["[UNK]", "[SEP]"]
    if kind == "wordpiece":
        trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
        text = unusual(models.WordPiece(unk_token="[UNK]"), trainer)
    else:
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="[UNK]", show_progress=False
        )
        text = unusual(models.Unigram(), trainer)
    tokenizer = PretrainedTokenizer(text)
    documents = ["The with Statement\nIS used [SEP] to wrap", "ÄÖÜ ½", ""]
    encoded, audit = tokenizer.encode_audited(documents)
    np.testing.assert_array_equal(encoded.ids, Reference(tokenizer.definition).encode(documents).ids)
    assert audit.spelled == 0
    assert tokenizer.separator is not None
    assert not (encoded.ids == tokenizer.separator).any()


def test_text_that_the_normalizer_changes_is_no_difference() -> None:
    """NFC: the proof fails where text is not normal, the reference agrees, nothing counts as differing."""
    tokenizer = HuggingFace.from_str(train_bpe(Bpe(size=600)))
    tokenizer.normalizer = normalizers.NFC()
    opened = PretrainedTokenizer(tokenizer.to_str())
    encoded, audit = opened.encode_audited(["plain", "e\u0301"])
    assert audit.differed == 0
    assert audit.documents == 2
    np.testing.assert_array_equal(encoded.ids, Reference(opened.definition).encode(["plain", "e\u0301"]).ids)


def test_settings_for_padding_and_truncation_do_not_reach_the_text(
    definition: str, bpe: PretrainedTokenizer
) -> None:
    short = HuggingFace.from_str(definition)
    short.enable_truncation(3)
    short.enable_padding(length=50)
    texts = ["one sentence that is longer than that", "b"]
    assert (
        PretrainedTokenizer(short.to_str()).encode_batch(texts).ids.tolist()
        == bpe.encode_batch(texts).ids.tolist()
    )


def test_a_separator_that_is_not_special_is_still_never_read_from_text() -> None:
    tokenizer = HuggingFace(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["some text"], trainer)
    tokenizer.add_tokens(["<eos>"])
    opened = PretrainedTokenizer(tokenizer.to_str())
    assert opened.separator == tokenizer.token_to_id("<eos>")
    encoded = opened.encode_batch(["a <eos> b"])
    assert opened.separator not in encoded.ids
    assert opened.decode(encoded.ids) == "a <eos> b"


def test_the_separator_is_shown_in_decoded_text(bpe: PretrainedTokenizer) -> None:
    for tokenizer in (bpe, Bytes().open(), Characters(alphabet="ab").open()):
        ids = tokenizer.encode_batch(["a"]).ids.tolist()
        assert tokenizer.decode([*ids, tokenizer.separator, *ids]) == f"a{SEPARATOR}a"


def test_text8_has_27_symbols_and_no_separator() -> None:
    tokenizer = Text8().open()
    assert (tokenizer.size, tokenizer.separator) == (27, None)
    assert tokenizer.encode_batch([" az"]).ids.tolist() == [0, 1, 26]


def test_an_alphabet_is_in_code_point_order_and_closes_with_the_separator() -> None:
    tokenizer = Characters().train(["bé", "aß\U0001f600"])
    assert tokenizer.to_json() == Characters(alphabet="abßé\U0001f600").open().to_json()
    assert tokenizer.size == 6
    assert tokenizer.separator == 5


def test_alphabets_larger_than_a_byte_work() -> None:
    alphabet = "".join(chr(0x4E00 + i) for i in range(300)) + "a"
    tokenizer = Characters(alphabet=alphabet).open()
    assert tokenizer.encode_batch(["a\u4e00"]).ids.tolist() == [300, 0]
    assert reencoded(tokenizer, [alphabet]) == [alphabet]
    with pytest.raises(DiscdiffError, match="U\\+0062"):
        tokenizer.encode_batch(["ab"])


@pytest.mark.parametrize("spec", [Text8(), Bytes(), Characters(alphabet="xyz\n"), Symbols(size=40)])
def test_json_opens_the_same_tokenizer(spec) -> None:
    tokenizer = spec.open()
    again = from_json(tokenizer.to_json())
    assert again.fingerprint == tokenizer.fingerprint
    assert again.size == tokenizer.size


def test_json_of_a_trained_tokenizer_needs_no_file(
    bpe: PretrainedTokenizer, tmp_path: Path, definition: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(definition)
    tokenizer = Pretrained(path=str(tmp_path)).open()
    text = tokenizer.to_json()
    (tmp_path / "tokenizer.json").unlink()
    assert from_json(text).fingerprint == tokenizer.fingerprint == bpe.fingerprint
    assert from_json(text).encode_batch(["a b"]).ids.tolist() == bpe.encode_batch(["a b"]).ids.tolist()


def test_a_tokenizer_file_counts_by_its_content(tmp_path: Path, definition: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(definition)
    a, b = (Pretrained(path=str(tmp_path / name)) for name in ("a", "b"))
    assert a.identity() == b.identity()
    (tmp_path / "b").write_text(train_bpe(Bpe(size=900)))
    assert a.identity() != b.identity()


def test_training_a_bpe_gives_the_same_file_each_time(definition: str) -> None:
    assert train_bpe(Bpe(size=1000)) == definition
    assert HuggingFace.from_str(definition).get_vocab_size() == 1000


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_the_speller_agrees_with_joining_the_pieces(data: st.DataObject) -> None:
    letter = st.sampled_from(b"ab")
    pieces = data.draw(st.lists(st.lists(letter, max_size=20).map(bytes), min_size=1, max_size=5))
    documents = data.draw(st.lists(st.lists(st.integers(0, len(pieces)), max_size=6), max_size=5))
    known = [b"".join(pieces[i] for i in document if i < len(pieces)) for document in documents]
    texts = [
        data.draw(st.sampled_from([text, text + b"a", text[:-1], text[:-1] + b"b", b"a" + text[1:]]))
        for text in known
    ]
    ids = np.array([i for document in documents for i in document], np.uint32)
    wrong = [
        i
        for i, document in enumerate(documents)
        if len(pieces) in document or b"".join(pieces[x] for x in document) != texts[i]
    ]
    assert Speller(pieces).misspelled(ids, offsets_of([len(x) for x in documents]), texts) == wrong


def test_speller_knows_bytes_from_their_neighbors() -> None:
    speller = Speller([b"a", b"b", b"ab", b"0123456789abcdefXYZ", b"0123456789abcdefXYz"])
    long = b"0123456789abcdefXYZ"
    ids, offsets = np.array([0, 1, 2, 3]), np.array([0, 2, 4])
    assert speller.misspelled(ids, offsets, [b"ab", b"ab" + long]) == []
    assert speller.misspelled(ids, offsets, [b"ab", b"ab" + long[:-1] + b"z"]) == [1]
    assert speller.misspelled(ids, np.array([0, 1, 4]), [b"ab", b"ab" + long]) == [0, 1]
    assert speller.misspelled(ids + 2, offsets, [b"ab", b"ab" + long]) == [0, 1]
    assert speller.misspelled(ids[:0], np.array([0, 0]), [b""]) == []
    assert speller.misspelled(ids[:0], np.array([0, 0]), [b"a"]) == [0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Characters(alphabet="").open(), "V = 0"),
        (lambda: Characters().train([]), "V = 0"),
        (lambda: Characters().open(), "alphabet is not known"),
        (lambda: Characters(alphabet="ab").open().encode_batch(["abc"]), r"'c' \(U\+0063\).*alphabet of 2"),
        (lambda: Text8().open().encode_batch(["Ab"]), "U\\+0041"),
        (lambda: Text8().open().decode([27]), "id 27 is not in the vocabulary"),
        (lambda: Bytes().open().decode([-1]), "id -1"),
        (lambda: PretrainedTokenizer("{"), "not a tokenizer.json"),
        (lambda: PretrainedTokenizer("{}"), "not a tokenizer.json"),
        (lambda: PretrainedTokenizer('{"model": {"vocab": {}}}'), "V = 0"),
        (lambda: PretrainedTokenizer('{"model": {"vocab": {"a": 0}}}'), "no token .* to close documents"),
        (lambda: Pretrained(path="/nowhere/tokenizer.json").open(), "no tokenizer at /nowhere"),
        (lambda: Pretrained(path="nothing://x").open(), "no tokenizer at nothing"),
        (lambda: from_json('{"kind": "runes"}'), "describes no tokenizer"),
        (lambda: train_bpe(Bpe(size=60_000)), "60000 were asked for"),
        (lambda: train_bpe(Bpe(corpus=LINES, size=300, characters=1)), "tokens at most"),
    ],
)
def test_mistakes_are_told_in_a_sentence(make, message: str) -> None:
    with pytest.raises(DiscdiffError, match=message):
        make()
