"""How the first sample came to be: it is drawn once more while an observer looks on.

A sample is a function of checkpoint, sampler, seed and row, so drawing it again gives the same.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from discdiff.data.encoding import Tokenizer
from discdiff.evaluation.page import Trace
from discdiff.noise import Noise
from discdiff.samplers import LeftToRight, Sampler
from discdiff.samplers.trace import Recorder
from discdiff.training import Trained
from discdiff.types import canvas
from pipelines.artifacts import Samples
from pipelines.generate import Default, Drawing
from pipelines.place import Place
from pipelines.record import Record
from pipelines.texts import readable


def trajectory(
    samples: Samples, first: NDArray[np.int64], trained: Trained, tokenizer: Tokenizer
) -> Trace | None:
    """The trajectory of the first sample; None where its sampler shows none."""
    record = Record.read(Place.at(samples.uri))
    if record is None:
        return None
    spec = {name: record.spec[name] for name in Drawing.model_fields if name in record.spec}
    drawing = Drawing.model_validate(spec)
    chosen = drawing.sampler
    sampler = chosen.of(trained.method) if isinstance(chosen, Default) else chosen
    if isinstance(sampler, LeftToRight):
        return _from_the_left(first, tokenizer)
    if not isinstance(sampler, Sampler):
        return None
    recorder, network = Recorder(), trained.network
    device = next(network.parameters()).device
    blank = canvas(torch.zeros(1, len(first), dtype=torch.int64, device=device))
    method: Any = trained.method
    sampler.run(method, network, blank, Noise(drawing.seed).on(blank.rows), recorder)  # pyright: ignore
    found = recorder.traces[0]
    steps = tuple(
        tuple((place, _text(token, trained.vocab, tokenizer)) for place, token in step)
        for step in found.steps
    )
    return Trace(times=tuple(found.times), steps=steps)


def _from_the_left(tokens: NDArray[np.int64], tokenizer: Tokenizer) -> Trace:
    vocab, length = tokenizer.size, len(tokens)
    blank = tuple((place, None) for place in range(length))
    written = tuple(((i, _text(int(token), vocab, tokenizer)),) for i, token in enumerate(tokens))
    return Trace(times=tuple(1 - i / length for i in range(length + 1)), steps=(blank, *written))


def _text(token: int, vocab: int, tokenizer: Tokenizer) -> str | None:
    return readable(tokenizer.decode([token])) if token < vocab else None
