"""How the first sample came to be, as text: from the trace that was kept when it was drawn."""

from discdiff.data.encoding import Tokenizer
from discdiff.evaluation.page import Trace
from pipelines import traces
from pipelines.artifacts import Samples
from pipelines.place import Place
from pipelines.texts import readable


def trajectory(samples: Samples, tokenizer: Tokenizer) -> Trace | None:
    """The trajectory of the first sample; None where none was kept."""
    found = traces.read(Place.at(samples.uri), 0)
    if found is None:
        return None
    steps = tuple(tuple((place, _text(token, tokenizer)) for place, token in step) for step in found.steps)
    return Trace(times=tuple(found.times), steps=steps)


def _text(token: int, tokenizer: Tokenizer) -> str | None:
    return readable(tokenizer.decode([token])) if token < tokenizer.size else None
