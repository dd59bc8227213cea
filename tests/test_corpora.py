"""Corpora: every document once and in order, however files are cut and wherever they lie."""

import bz2
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Folder as Served
from fsspec.implementations.http import HTTPFile
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from discdiff.data.corpora import (
    AnyCorpus,
    Corpus,
    Files,
    Lm1b,
    OpenWebText,
    PythonDocs,
    Text8Corpus,
    Wikitext,
)
from discdiff.data.detokenize import detokenize
from discdiff.data.folder import Folder
from discdiff.data.lines import split
from discdiff.data.splits import ByHash
from discdiff.types import DiscdiffError, UnreachableError

DOCUMENTS = [
    "one",
    "zwölf Boxkämpfer\njagen",
    "",
    "三つの文書",
    'a "quoted" \\ line',
    "x" * 300,
    " <|endoftext|> ",
    "\ttab",
]


def read(corpus: Corpus, size: int = 2**25) -> list[str]:
    return [text for span in corpus.plan(size) for text in corpus.documents(span)]


def by_split(corpus: Corpus, size: int = 2**25) -> dict[str | None, list[str]]:
    found: dict[str | None, list[str]] = {}
    for span in corpus.plan(size):
        found.setdefault(span.split, []).extend(corpus.documents(span))
    return found


def json_lines(documents: list[str], field: str = "text") -> bytes:
    return b"".join(json.dumps({"id": i, field: text}).encode() + b"\n" for i, text in enumerate(documents))


def table(documents: list[str], field: str = "text") -> pa.Table:
    return pa.table({"id": range(len(documents)), field: documents})


def write_parquet(path: Path, documents: list[str]) -> None:
    pq.write_table(table(documents), path, row_group_size=3)


def write_arrow_file(path: Path, documents: list[str]) -> None:
    with pa.ipc.new_file(path, table(documents).schema) as writer:
        writer.write_table(table(documents), max_chunksize=2)


def write_arrow_stream(path: Path, documents: list[str]) -> None:
    with pa.ipc.new_stream(path, table(documents).schema) as writer:
        writer.write_table(table(documents), max_chunksize=2)


def compressed(codec: str, data: bytes) -> bytes:
    match codec:
        case ".gz":  # two members, as concatenated logs have
            return gzip.compress(data[:50]) + gzip.compress(data[50:])
        case ".bz2":
            return bz2.compress(data)
        case _:
            return pa.compress(data, {".zst": "zstd"}[codec], asbytes=True)


WRITERS: dict[str, Callable[[Path, list[str]], object]] = {
    "a.jsonl": lambda path, documents: path.write_bytes(json_lines(documents)),
    "a.json": lambda path, documents: path.write_bytes(json_lines(documents).rstrip(b"\n")),
    "a.jsonl.gz": lambda path, documents: path.write_bytes(compressed(".gz", json_lines(documents))),
    "a.json.gz": lambda path, documents: path.write_bytes(compressed(".gz", json_lines(documents))),
    "a.jsonl.zst": lambda path, documents: path.write_bytes(compressed(".zst", json_lines(documents))),
    "a.ndjson.bz2": lambda path, documents: path.write_bytes(compressed(".bz2", json_lines(documents))),
    "a.parquet": write_parquet,
    "a.arrow": write_arrow_file,
    "b.arrow": write_arrow_stream,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("size", [2**25, 40])
def test_every_format_gives_the_documents_in_order(tmp_path: Path, name: str, size: int) -> None:
    WRITERS[name](tmp_path / name, DOCUMENTS)
    corpus = Files(url=str(tmp_path / name))
    assert read(corpus, size) == DOCUMENTS
    if size == 40 and name in ("a.jsonl", "a.parquet", "a.arrow"):
        assert len(corpus.plan(size)) > 1


@pytest.mark.parametrize("codec", ["", ".gz", ".zst", ".bz2"])
def test_a_text_file_is_one_document_or_what_stands_between_separators(tmp_path: Path, codec: str) -> None:
    text = "first\n\nsecond ü\nline\n\n"
    path = tmp_path / f"a.txt{codec}"
    path.write_bytes(compressed(codec, text.encode()) if codec else text.encode())
    assert read(Files(url=str(path))) == [text]
    assert read(Files(url=str(path), separator="\n")) == ["first", "", "second ü", "line", ""]
    assert read(Files(url=str(path), separator="\n\n")) == ["first", "second ü\nline"]


@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Cs",), exclude_characters="|\n\ufeff"), max_size=12),
        max_size=12,
    ),
    st.integers(1, 60),
    st.sampled_from(["\n", "|\n", "<|endoftext|>\n", "|-|"]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_records_are_read_once_wherever_a_file_is_cut(
    tmp_path_factory: pytest.TempPathFactory, records: list[str], size: int, separator: str, closed: bool
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    data = separator.join(records) + (separator if closed and records else "")
    path.write_bytes(data.encode())
    expected = [record.decode() for _, record in split([data.encode()], separator.encode())]
    assert read(Files(url=str(path), separator=separator), size) == expected
    assert "".join(read(Files(url=str(path)), size)) == data


@given(st.binary(max_size=60), st.lists(st.integers(0, 60)), st.sampled_from([b"\n", b"ab", b"\n\n"]))
def test_splitting_does_not_depend_on_blocks(data: bytes, borders: list[int], separator: bytes) -> None:
    at = sorted({0, len(data), *(border for border in borders if border < len(data))})
    blocks = [data[a:b] for a, b in pairwise(at)]
    found = list(split(blocks, separator))
    assert found == list(split([data], separator))
    assert all(data[place : place + len(record)] == record for place, record in found)


def test_folders_and_globs_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/d.jsonl", "notes.pdf"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(json_lines(["d"]) if name.endswith("jsonl") else path.stem.encode())
    assert read(Files(url=str(tmp_path))) == ["a", "b", "c", "d"]
    assert read(Files(url=str(tmp_path / "*.txt"))) == ["a", "b"]
    assert read(Files(url=(str(tmp_path / "b.txt"), str(tmp_path / "a.txt")))) == ["b", "a"]
    assert len(Files(url=str(tmp_path)).plan()) == 1
    assert len(Files(url=str(tmp_path)).plan(1)) >= 4


def test_another_field_and_another_suffix(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(json_lines(["x"], "content"))
    assert read(Files(url=str(tmp_path / "log"), field="content", suffix=".jsonl")) == ["x"]


def test_null_is_an_empty_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": null}\n\n{"text": "b"}\n')
    pq.write_table(pa.table({"text": pa.array([None, "c"])}), tmp_path / "b.parquet")
    assert read(Files(url=str(tmp_path))) == ["", "b", "", "c"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufefftext \ufeff".encode())
    assert read(Files(url=str(tmp_path))) == ["text \ufeff"]


@pytest.mark.parametrize("where", ["bucket", "google_bucket", "http_folder"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.arrow"])
def test_object_stores_and_web_servers_are_read_by_range(
    where: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    WRITERS[name](tmp_path / name, DOCUMENTS)
    url = published(where, {name: (tmp_path / name).read_bytes()}, request)
    assert read(Files(url=f"{url}/{name}"), 100) == DOCUMENTS


def published(where: str, files: dict[str, bytes], request: pytest.FixtureRequest) -> str:
    """The URL of a place that holds these files."""
    place = request.getfixturevalue(where)
    url = place if isinstance(place, str) else place.url
    for name, data in files.items():
        if isinstance(place, str):
            fs, path = fsspec.url_to_fs(f"{url}/{name}")
            fs.pipe_file(path, data)
        else:
            path = place.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return url


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.arrow"])
def test_a_connection_that_breaks_is_no_fault_of_the_file(
    name: str, http_folder: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](http_folder.path / name, DOCUMENTS)
    corpus = Files(url=f"{http_folder.url}/{name}")
    spans = corpus.plan()

    def broken(*_: object) -> bytes:
        raise OSError("reset by peer")

    monkeypatch.setattr(HTTPFile, "read", broken)
    with pytest.raises(UnreachableError, match=rf"/{name} can't be read: reset by peer; see that it can"):
        list(corpus.documents(spans[0]))


@pytest.mark.parametrize("where", ["bucket", "google_bucket"])
def test_a_glob_in_a_bucket(where: str, request: pytest.FixtureRequest) -> None:
    url = published(where, {f"in/{name}.txt": name.encode() for name in ("b", "a")}, request)
    assert read(Files(url=f"{url}/in/*.txt")) == ["a", "b"]
    assert read(Files(url=f"{url}/in")) == ["a", "b"]


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


TEXT8 = ("the quick brown fox jumps over the lazy dog " * 30)[:1000].encode()


@pytest.mark.parametrize("where", ["bucket", "http_folder"])
def test_text8_is_cut_where_its_protocol_says(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = published(where, {"text8.zip": zipped({"text8": TEXT8})}, request)
    corpus = Text8Corpus(url=f"{url}/text8.zip", train=900, validation=50, test=50).unpacked(
        Folder.at(tmp_path / "u")
    )
    found = {name: "".join(parts) for name, parts in by_split(corpus, 128).items()}
    text = TEXT8.decode()
    assert found == {"train": text[:900], "validation": text[900:950], "test": text[950:]}
    assert [len(part) <= 128 for part in by_split(corpus, 128)["train"]] == [True] * 8
    with pytest.raises(DiscdiffError, match="1000 characters, but its splits take 1001"):
        Text8Corpus(url=corpus.url, train=901, validation=50, test=50).plan()


LM1B = {
    f"1-billion/{folder}/{name}": f"{name} says , hi .\nand  more\n".encode()
    for folder, names in {
        "training-monolingual.tokenized.shuffled": ["news.en-00002-of-00100", "news.en-00001-of-00100"],
        "heldout-monolingual.tokenized.shuffled": ["news.en.heldout-00000-of-00050"],
    }.items()
    for name in names
} | {"1-billion/README": b"read me"}


@pytest.mark.parametrize("where", ["bucket", "http_folder"])
def test_lm1b_is_a_sentence_a_document(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = published(where, {"lm1b.tar.gz": tarred(LM1B)}, request)
    corpus = Lm1b(url=f"{url}/lm1b.tar.gz").unpacked(Folder.at(tmp_path / "u"))
    assert by_split(corpus) == {
        "train": [
            "news.en-00001-of-00100 says , hi .",
            "and  more",
            "news.en-00002-of-00100 says , hi .",
            "and  more",
        ],
        "test": ["news.en.heldout-00000-of-00050 says , hi .", "and  more"],
    }
    assert by_split(corpus, 20) == by_split(corpus)


def test_lm1b_reads_the_unpacked_tree(tmp_path: Path) -> None:
    for name, data in LM1B.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert len(read(Lm1b(url=str(tmp_path)))) == 6


ARTICLES = " \n = First = \n \n text of it\n = = Section = = \n more\n = Second = \n \n other\n"


def test_wikitext_is_an_article_a_document_in_both_editions(tmp_path: Path, http_folder) -> None:
    names = {"train": "wiki.train.raw", "validation": "wiki.valid.raw", "test": "wiki.test.raw"}
    (http_folder.path / "w.zip").write_bytes(
        zipped({f"wikitext-2-raw/{n}": ARTICLES.encode() for n in names.values()})
    )
    raw = Wikitext(url=f"{http_folder.url}/w.zip").unpacked(Folder.at(tmp_path / "u"))
    rows = ARTICLES.splitlines(keepends=True)
    (tmp_path / "p").mkdir()
    for name in names:
        write_parquet(tmp_path / "p" / f"{name}-00000-of-00001.parquet", rows)
    parquet = Wikitext(url=str(tmp_path / "p"))
    assert set(by_split(raw)) == set(names)
    assert by_split(raw) == by_split(parquet)
    assert "".join(by_split(raw)["train"]) == ARTICLES
    assert [text[:11] for text in by_split(raw)["test"]] == [" \n = First ", " = Second ="]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("size", [30, 2**25])
def test_openwebtext_validates_on_its_last_documents(tmp_path: Path, name: str, size: int) -> None:
    documents = [f"document {i}" for i in range(11)]
    WRITERS[name](tmp_path / f"0-{name}", documents[:6])
    WRITERS[name](tmp_path / f"1-{name}", documents[6:])
    for count in (1, 4, 5, 7, 10):
        corpus = OpenWebText(url=str(tmp_path), validation=count)
        assert by_split(corpus, size) == {"train": documents[:-count], "validation": documents[-count:]}
    with pytest.raises(DiscdiffError, match="11 documents, of which the last 11"):
        OpenWebText(url=str(tmp_path), validation=11).plan()


def test_python_docs_are_those_of_this_python() -> None:
    corpus = PythonDocs()
    documents = read(corpus)
    assert len(documents) > 50
    assert any("with" in text and "statement" in text for text in documents)
    with pytest.raises(DiscdiffError, match=r"topics of Python 2\.7\.18 were asked for"):
        PythonDocs(python="2.7.18").plan()


@pytest.mark.parametrize(
    "corpus", [PythonDocs(), Files(url=("a", "b")), Text8Corpus(), Lm1b(), OpenWebText(), Wikitext()]
)
def test_corpora_survive_json(corpus: AnyCorpus) -> None:
    adapter = TypeAdapter(AnyCorpus)
    assert adapter.validate_json(adapter.dump_json(corpus)) == corpus


def test_documents_keep_their_split_when_others_come() -> None:
    rule = ByHash(validation=0.2, test=0.1)
    texts = [f"document {i}".encode() for i in range(20_000)]
    found = [rule.of(text) for text in texts]
    assert found.count("validation") / 20_000 == pytest.approx(0.2, abs=0.015)
    assert found.count("test") / 20_000 == pytest.approx(0.1, abs=0.012)
    more_test = ByHash(validation=0.2, test=0.15)
    assert all(
        more_test.of(text) == "test" for text, split in zip(texts, found, strict=True) if split == "test"
    )
    assert found != [ByHash(validation=0.2, test=0.1, seed=1).of(text) for text in texts]
    with pytest.raises(ValidationError, match="less than 1"):
        ByHash(validation=0.6, test=0.4)


SPACED = {
    "wikitext": [
        (" = Robert Boulter = \n", " = Robert Boulter =\n"),
        (
            'a cost of 1 @,@ 000 @.@ 5 , about " half " ( of it ) .',
            'a cost of 1,000.5, about "half" (of it).',
        ),
        ("the player 's two @-@ part game ; it is n't over", "the player's two-part game; it isn't over"),
    ],
    "ptb": [
        ("the company said it wo n't pay $ N million", "the company said it won't pay $N million"),
        ("it 's up N % , he says", "it's up N%, he says"),
    ],
    "lm1b": [
        ('He said : " It is $ 5 , not more . "', 'He said: "It is $5, not more."'),
        ("They did n't ( yet ) know it 's over !", "They didn't (yet) know it's over!"),
    ],
    "lambada": [("`` do n't , '' she said .", '"don\'t," she said.')],
}


@pytest.mark.parametrize(
    ("name", "spaced", "plain"), [(n, a, b) for n, pairs in SPACED.items() for a, b in pairs]
)
def test_detokenizers_close_up_what_was_spaced(name: str, spaced: str, plain: str) -> None:
    assert detokenize(name)(spaced) == plain


@pytest.mark.parametrize("name", SPACED)
def test_detokenizers_leave_plain_text_alone(name: str) -> None:
    text = 'Plain text, with "quotes" (and parentheses); it\'s left as it was. Two lines:\nthe second.'
    assert detokenize(name)(text) == text


def test_mistakes_in_the_input_are_told_in_a_sentence(tmp_path: Path) -> None:
    good = b"{}\n"
    cases: dict[str, tuple[bytes, str]] = {
        "latin.txt": ("gut und schön".encode("latin-1"), r"latin.txt is not UTF-8: byte 0xF6 at offset 11"),
        "half.jsonl": (
            b'{"text": "a"}\n{"text": "\xff"}\n',
            r"half.jsonl is not UTF-8: byte 0xFF at offset 24",
        ),
        "cut.txt.gz": (gzip.compress(b"text" * 1000)[:-20], "no whole gzip file"),
        "bad.jsonl": (b'{"text": "a"}\n{"text"\n', "record at byte 14 is not JSON"),
        "list.json": (b"[1]\n", "it is no object"),
        "field.jsonl": (b'{"a": 1, "b": 2}\n', "no field 'text': its fields are a, b"),
        "number.jsonl": (b'{"text": 3}\n', "is int, not text"),
        "pair.jsonl": (b'{"text": "\\ud800"}\n', "half of a surrogate pair"),
        "picture.png": (good, "no known suffix"),
        "no.parquet": (b"PAR1 is not enough", "no whole .parquet file"),
        "no.arrow": (b"ARROW", "no whole .arrow file"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DiscdiffError, match=message):
            read(Files(url=str(tmp_path / name)))
    pq.write_table(pa.table({"text": [1]}), tmp_path / "number.parquet")
    with pytest.raises(DiscdiffError, match=r"'text' of .* is int64, not text"):
        read(Files(url=str(tmp_path / "number.parquet")))
    with pytest.raises(DiscdiffError, match=r"no field 'body'; its fields are text"):
        read(Files(url=str(tmp_path / "number.parquet"), field="body"))


def test_text_that_is_not_utf8_is_found_at_its_place_in_any_piece(tmp_path: Path) -> None:
    data = b"line\n" * 50 + b"b\xe4d\n" + b"line\n" * 50
    (tmp_path / "a.txt").write_bytes(data)
    for separator in (None, "\n"):
        with pytest.raises(DiscdiffError, match="offset 251"):
            read(Files(url=str(tmp_path / "a.txt"), separator=separator), 64)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/nowhere/at/all.txt", "can't be read"),
        ("/nowhere/*.txt", "matches no file"),
        ("nothing://x.txt", "can't be read: Protocol not known"),
        ("http://127.0.0.1:9/a.txt", r"127\.0\.0\.1:9/a\.txt can't be read"),
    ],
)
def test_places_that_are_not_there(url: str, message: str) -> None:
    with pytest.raises(DiscdiffError, match=message):
        Files(url=url).plan()


def test_damaged_and_foreign_archives_are_refused(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "u")
    (tmp_path / "a.zip").write_bytes(zipped({"text8": TEXT8})[:-30])
    with pytest.raises(DiscdiffError, match="no whole archive"):
        Text8Corpus(url=str(tmp_path / "a.zip")).unpacked(folder)
    (tmp_path / "b.zip").write_bytes(zipped({"enwik8": TEXT8}))
    with pytest.raises(DiscdiffError, match="none of this corpus's files"):
        Text8Corpus(url=str(tmp_path / "b.zip")).unpacked(folder)
    whole = tarred(LM1B)
    for kept in (0, 20, len(whole) // 2, len(whole) - 40, len(whole) - 1):
        (tmp_path / "c.tar.gz").write_bytes(whole[:kept])
        with pytest.raises(DiscdiffError, match="no whole"):
            Lm1b(url=str(tmp_path / "c.tar.gz")).unpacked(folder)
    (tmp_path / "d.zip").write_bytes(zipped({"../../text8": b"out"}))
    Text8Corpus(url=str(tmp_path / "d.zip")).unpacked(folder)
    assert [path.name for path in (tmp_path / "u").iterdir() if path.name == "text8"] == ["text8"]
    assert not (tmp_path.parent / "text8").exists()
