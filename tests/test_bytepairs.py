"""Byte-pair encoding in one pass: it is the reference's, whatever was met before and however little is
remembered.
"""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFace
from tokenizers import normalizers, pre_tokenizers

from discdiff.data import bytepairs
from discdiff.data.bpe import Bpe, train_bpe
from discdiff.data.bytepairs import (
    SHORT,
    SLOTS,
    BytePairs,
    Pieces,
    encode_long,
    encode_words,
    merges_of,
    room,
)
from discdiff.data.pretrained import PretrainedTokenizer, Reference
from discdiff.data.spelling import byte_of_character, pieces_of

SURROGATES = range(0xD800, 0xE000)
FRAGMENTS = (
    *("'s", "'re", "'ll", "'LL", "'d", "'", "''", " '", "s", "lll", "re", "a", "the", "Ab", "é", "中文", "ش"),
    *("0", "12", "½", "٣", "!", "...", "_", "\u0301", "👩‍👩‍👧", "\U0001f600", "\x00", "\U00052000", "\ue000"),
    *(
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\x0b",
        "\x1c",
        "\x85",
        "\u00a0",
        "\u3000",
        "\u2003",
        "\u200b",
        "\u180e",
    ),
)
UGLY = st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join)
ANY = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


@pytest.fixture(scope="module")
def definition() -> str:
    return train_bpe(Bpe(size=3000))


@pytest.fixture(scope="module")
def reference(definition: str) -> Reference:
    return Reference(definition)


def opened(definition: str, reference: Reference) -> BytePairs:
    found = BytePairs.of(json.loads(definition), reference.words)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def encoder(definition: str, reference: Reference) -> BytePairs:
    return opened(definition, reference)


def assert_exact(encoder: BytePairs, reference: Reference, texts: list[str]) -> None:
    (ids, offsets), wrong = encoder.encode([text.encode() for text in texts])
    exact = reference.encode(texts)
    np.testing.assert_array_equal(ids, exact.ids)
    np.testing.assert_array_equal(offsets, exact.offsets)
    assert wrong == []


@given(st.lists(UGLY | ANY, max_size=8))
@settings(max_examples=300, deadline=None)
def test_it_is_the_reference_on_ugly_text(encoder: BytePairs, reference: Reference, texts: list[str]) -> None:
    assert_exact(encoder, reference, texts)


def test_every_character_is_of_the_kind_that_the_reference_sees(
    definition: str, reference: Reference
) -> None:
    """Before and after a letter, a number, a sign and spaces."""
    planes = (*range(0x30000), *range(0xE0000, 0xE0200), *range(0x10FF00, 0x110000))
    characters = [chr(c) for c in planes if c not in SURROGATES]
    texts = [
        "".join(f"a{c}a0{c}0!{c}! {c}\n{c} \n" for c in characters[i : i + 4096])
        for i in range(0, len(characters), 4096)
    ]
    assert_exact(opened(definition, reference), reference, texts)


@pytest.mark.parametrize("memory", [(2, 1, 1024), (16, 4, 1024), (2**19, 2**16, 2**20)])
def test_what_is_remembered_changes_nothing(
    definition: str, reference: Reference, memory: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words crowd each other out, the arena overflows, and a text is met again."""
    for name, size in zip(("_NEAR", "_FAR", "_ARENA"), memory, strict=True):
        monkeypatch.setattr(bytepairs, name, size)
    encoder = opened(definition, reference)
    draw = np.random.default_rng(0)
    words = [draw.choice([*FRAGMENTS], 8) for _ in range(300)]
    texts = [" ".join("".join(words[i]) for i in draw.integers(0, 300, 200)) for _ in range(20)]
    for _ in range(3):
        assert_exact(encoder, reference, texts)


def test_words_and_documents_of_any_length(encoder: BytePairs, reference: Reference) -> None:
    sizes = (*range(70), 250, 255, 256, 257, 300, 5000)
    words = [letter * size for size in sizes for letter in ("a", "ab", "é", "=", "\n", " ", "中", "9")]
    long = "".join(f" w{i} 'd" for i in range(60_000))
    assert len(long) > 2**18
    texts = [*words, *(word + "." for word in words), "", long, "", " ".join(words), "end"]
    assert_exact(encoder, reference, texts)
    assert_exact(encoder, reference, texts[::-1])


def test_new_words_of_one_block_are_merged_alike(definition: str, reference: Reference) -> None:
    """Words of all lengths side by side, more than are merged in step, and some of them twice."""
    draw = np.random.default_rng(1)
    words = [" " + "".join(draw.choice([*"aeinst"], n)) for n in range(SHORT + 1)]
    for order in (words, words[::-1], words[: SLOTS + 1] * 2, [*words[1:9], *words[-9:], *words[1:9]]):
        assert_exact(opened(definition, reference), reference, ["".join(order), *order])


WORDS = st.binary(min_size=1, max_size=SHORT + 1) | st.text("aeinst ", min_size=1, max_size=SHORT + 1).map(
    str.encode
)


@given(st.lists(WORDS, min_size=1, max_size=2 * SLOTS + 1))
@settings(max_examples=300, deadline=None)
def test_looking_through_ranks_and_a_heap_merge_alike(definition: str, texts: list[bytes]) -> None:
    model = json.loads(definition)["model"]
    tables = merges_of(model["vocab"], model["merges"], byte_of_character())
    assert tables is not None
    of_bytes, byte_pairs, pairs, shift = tables
    text, sizes = b"".join(texts), [len(text) for text in texts]
    words = np.ndarray(len(text), "<u8", text + bytes(8), strides=(1,))
    fresh, number = bytepairs.fresh_words(len(texts)), np.uint64(len(texts))
    fresh[bytepairs._STARTS, :-1] = fresh[bytepairs._PLACES, :-1] = np.cumsum([0, *sizes[:-1]])
    fresh[bytepairs._SIZES, :-1] = sizes
    found, one = np.zeros(len(text), np.uint32), np.zeros(len(text), np.uint32)
    encode_words(words, fresh, number, of_bytes, byte_pairs, pairs, shift, room(), found)
    for start, size, count in fresh[[bytepairs._STARTS, bytepairs._SIZES, bytepairs._COUNTS], :-1].T:
        n = encode_long(words, start, size, of_bytes, pairs, shift, one, np.uint64(0))
        assert found[start : start + count].tolist() == one[:n].tolist()


def test_a_word_that_its_tokens_do_not_spell_is_told(definition: str, reference: Reference) -> None:
    """A vocabulary whose bytes are not what its merges say: the reference encodes those documents."""
    tokenizer = PretrainedTokenizer(definition)
    encoder = opened(definition, reference)
    token = int(reference.encode([" the"]).ids[0])
    pieces = pieces_of(json.loads(definition))
    assert pieces is not None
    pieces[token] = pieces[token][:-1] + b"f"
    encoder._pieces = Pieces.of(pieces)
    texts = ["see the end", "nothing wrong", "over the top"]
    assert encoder.encode([text.encode() for text in texts])[1] == [0, 2]
    tokenizer.__dict__["_engine"] = encoder
    encoded, audit = tokenizer.encode_audited(texts)
    np.testing.assert_array_equal(encoded.ids, reference.encode(texts).ids)
    assert (audit.spelled, audit.reference, audit.differed) == (1, 2, 0)


@pytest.mark.parametrize("place", [0, 7, 8, -1, "shorter", "longer"])
def test_a_token_whose_bytes_differ_anywhere_is_told(
    definition: str, reference: Reference, place: int | str
) -> None:
    pieces, encoder = pieces_of(json.loads(definition)), opened(definition, reference)
    assert pieces is not None
    token = next(i for i, piece in enumerate(pieces) if len(piece) > 9 and piece.isalpha())
    text = pieces[token].decode()
    assert reference.encode([text]).ids.tolist() == [token]
    letters = bytearray(pieces[token])
    if isinstance(place, int):
        letters[place] ^= 1
    pieces[token] = {"shorter": bytes(letters[:-1]), "longer": bytes(letters) + b" "}.get(
        place, bytes(letters)
    )
    encoder._pieces = Pieces.of(pieces)
    texts = [f"see {text}", f"{text} is", "nothing wrong", f"\n{text} {text}", "fine"]
    assert encoder.encode([text.encode() for text in texts])[1] == [1, 3]


def without(definition: str, change: str) -> str:
    tokenizer = HuggingFace.from_str(definition)
    if change == "normalized":
        tokenizer.normalizer = normalizers.NFC()
    if change == "digits":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), tokenizer.pre_tokenizer])
    if change == "prefixed":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    if change == "one word":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if change == "added":
        tokenizer.add_tokens(["def "])
    parsed = json.loads(tokenizer.to_str())
    if change == "reordered":
        pairs = parsed["model"]["merges"]
        pairs[700], pairs[701] = pairs[701], pairs[700]
    return json.dumps(parsed)


@pytest.mark.parametrize("change", ["normalized", "digits", "prefixed", "one word", "added", "reordered"])
def test_other_vocabularies_are_left_to_others(definition: str, change: str) -> None:
    changed = without(definition, change)
    assert BytePairs.of(json.loads(changed), lambda text: [text]) is None
    tokenizer = PretrainedTokenizer(changed)
    assert tokenizer.engine != "bytepairs"
    texts = ["def f(x): return 'tis 12 e\u0301", " it's"]
    np.testing.assert_array_equal(
        tokenizer.encode_batch(texts).ids, Reference(tokenizer.definition).encode(texts).ids
    )


def test_merges_without_their_parts_are_refused(definition: str) -> None:
    model = json.loads(definition)["model"]
    assert merges_of(model["vocab"], [["q", "nothing"]], byte_of_character()) is None
    assert merges_of(model["vocab"], [*model["merges"], model["merges"][0]], byte_of_character()) is None
    lacking = {token: i for token, i in model["vocab"].items() if token != "a"}
    assert merges_of(lacking, [], byte_of_character()) is None
    assert bytepairs.MOST_TOKENS == 2**20
