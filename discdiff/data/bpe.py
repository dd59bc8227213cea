"""A byte-level BPE vocabulary made from a corpus: lossless on any text, closed by `<|endoftext|>`.

Byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909) over bytes, with words cut as GPT-2 cuts them.
Counting and merging are those of Hugging Face `tokenizers`.
"""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from discdiff.data.archives import is_archive
from discdiff.data.corpora import AnyCorpus
from discdiff.data.encoding import SEPARATOR
from discdiff.data.pythondocs import PythonDocs
from discdiff.data.spans import SPAN
from discdiff.data.splits import ByHash
from discdiff.types import DiscdiffError, Value


class Bpe(Value, frozen=True):
    """A vocabulary to be trained: `train_bpe(spec)` makes its `tokenizer.json`.

    Only the training split is read, up to `characters` of it in the order of the corpus.
    """

    corpus: AnyCorpus = PythonDocs()
    size: Annotated[int, Field(ge=257, le=2**20)] = 8192
    """V: the 256 bytes, the separator, and the merges."""
    least: Annotated[int, Field(ge=1)] = 2
    """Occurrences of a pair that make it worth a token."""
    splits: ByHash = ByHash()
    characters: Annotated[int, Field(ge=1)] = 2**30
    part: Annotated[int, Field(ge=1)] = SPAN

    @property
    def label(self) -> str:
        return f"{self.corpus.kind} {self.size}"


def train_bpe(spec: Bpe) -> str:
    """The `tokenizer.json` of a specification: the same whenever and on however many cores it is made.

    Raises DiscdiffError if the corpus is empty, or too small for so many tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.size,
        min_frequency=spec.least,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(spec), trainer)
    if tokenizer.get_vocab_size() < spec.size:
        raise DiscdiffError(
            f"the corpus gives {tokenizer.get_vocab_size()} tokens at most, but {spec.size} were asked for; "
            "ask for fewer, lower least, or give more text"
        )
    return tokenizer.to_str()


def _texts(spec: Bpe) -> Iterator[str]:
    """Documents of the training split."""
    url = getattr(spec.corpus, "url", "")
    if isinstance(url, str) and is_archive(url):
        raise DiscdiffError(f"{url} is an archive; unpack it and give the folder, to train a tokenizer on it")
    left = spec.characters
    for span in spec.corpus.plan(spec.part):
        for text in spec.corpus.documents(span):
            if (span.split or spec.splits.of(text.encode())) == "train":
                yield text
                left -= len(text)
            if left <= 0:
                return
    if left == spec.characters:
        raise DiscdiffError(f"the corpus {spec.corpus.model_dump_json()} is empty; give other files")
