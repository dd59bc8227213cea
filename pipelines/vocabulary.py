"""The stage that trains a tokenizer on a corpus."""

from typing import Literal

from discdiff.data.bpe import Bpe, train_bpe
from discdiff.data.pretrained import Pretrained
from pipelines.artifacts import Artifact
from pipelines.stage import stage
from pipelines.work import Work

FILE = "tokenizer.json"


class Vocabulary(Artifact, frozen=True):
    """A trained `tokenizer.json`; `vocabulary.tokenizer` is what `Tokenize` takes."""

    kind: Literal["vocabulary"] = "vocabulary"
    size: int
    fingerprint: str

    @property
    def tokenizer(self) -> Pretrained:
        """The specification of the tokenizer, which counts in keys by the file's content."""
        return Pretrained(path=self.file(FILE))


@stage(version=1)
def vocabulary(spec: Bpe, work: Work) -> Vocabulary:
    """Train a byte-level BPE on the training split of a corpus."""
    (work.directory / FILE).write_text(train_bpe(spec), encoding="utf-8")
    trained = Pretrained(path=str(work.directory / FILE)).open()
    return Vocabulary(key=work.key, uri=work.uri, size=trained.size, fingerprint=trained.fingerprint)
