"""Samples measured beside real text: every metric that the store, the judge and the samples allow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from discdiff.data.store import Store
from discdiff.evaluation.judge import Judge, judged
from discdiff.evaluation.mauve import Mauve
from discdiff.evaluation.quality import Quality, quality, with_training
from discdiff.evaluation.sequences import Sequences, sequences
from discdiff.evaluation.spelling import spelled, words
from discdiff.types import Canvas, canvas
from pipelines.bound import BATCH
from pipelines.texts import Drawn, is_character_level, readable, real, stream, text_of
from pipelines.work import Work


@dataclass(frozen=True)
class Measured:
    """A row for samples, one for real text of the same size, and some of that text."""

    samples: Quality
    real: Quality
    real_texts: tuple[str, ...]


def measure_samples(drawn: Drawn, store: Store, judge: Judge | None, mauve: Mauve, work: Work) -> Measured:
    """Both rows, with the warnings that their difference gives rise to."""
    samples = sequences(drawn.ids, store.vocab)
    truth = real(store, len(samples), round(float(samples.lengths.mean())))
    real_texts = [readable(store.tokenizer.decode(ids)) for ids in _split(truth)]
    texts = ([readable(text) for text in drawn.texts], real_texts)
    work.progress(0, 4, "counting n-grams")
    rows = [quality(samples), quality(truth)]
    if "train" in store.manifest.splits:
        with Store.open(store.uri, "train") as training:
            work.progress(1, 4, "searching the training set")
            rows = with_training(rows, [samples, truth], stream(training))
            work.progress(2, 4, "spelling")
            rows = _with_spelling(rows, texts, training)
    if judge is not None:
        work.progress(3, 4, f"reading with {judge.name}")
        rows = _with_judge(rows, (samples, truth), texts, judge, mauve)
    work.progress(4, 4)
    return Measured(rows[0].beside(rows[1]), rows[1], tuple(real_texts))


def _split(samples: Sequences) -> list[NDArray[np.int64]]:
    return np.split(samples.tokens, samples.offsets[1:-1])


def _with_spelling(rows: list[Quality], texts: Sequence[list[str]], training: Store) -> list[Quality]:
    if not is_character_level(training):
        return rows
    known = words(text_of(training))
    return [
        row.model_copy(update={"spelling": spelled(each, known)})
        for row, each in zip(rows, texts, strict=True)
    ]


def _with_judge(
    rows: list[Quality],
    both: tuple[Sequences, Sequences],
    texts: Sequence[list[str]],
    judge: Judge,
    mauve: Mauve,
) -> list[Quality]:
    """Perplexities of both rows; MAUVE compares the samples with the real text."""
    readings = [judge.read(list(_canvases(each)), text) for each, text in zip(both, texts, strict=True)]
    found = [judged(judge, readings[0], readings[1], mauve), judged(judge, readings[1], None, mauve)]
    warnings = mauve.warnings(len(both[0]), round(rows[0].length)) if found[0].mauve is not None else []
    noted = rows[0].model_copy(update={"warnings": (*rows[0].warnings, *warnings)})
    return [
        row.model_copy(update={"judged": each}) for row, each in zip((noted, rows[1]), found, strict=True)
    ]


def _canvases(samples: Sequences) -> Iterator[Canvas]:
    """The samples as batches of one length each, in their order."""
    ids = _split(samples)
    size = max(1, BATCH // max(1, int(samples.lengths.max())))
    start = 0
    while start < len(ids):
        stop = start + 1
        while stop < min(len(ids), start + size) and len(ids[stop]) == len(ids[start]):
            stop += 1
        if len(ids[start]):
            yield canvas(torch.from_numpy(np.stack(ids[start:stop])), first_row=start)
        start = stop
