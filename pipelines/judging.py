"""Who reads samples: one of our autoregressive checkpoints, or a Hugging Face model from its files."""

import torch

from discdiff.evaluation.judge import HuggingFace, Judge, Own
from discdiff.training import load
from discdiff.types import DiscdiffError
from pipelines.artifacts import Checkpoint


def opened(checkpoint: Checkpoint | None, hugging_face: str | None, tokenizer: str) -> Judge | None:
    """The judge of samples of a tokenizer, given by its fingerprint; None where none was asked for.

    Raises DiscdiffError for two judges, and for one that can't read these samples: of another vocabulary,
    with a bound in place of a likelihood, or without its files.
    """
    if checkpoint is not None and hugging_face is not None:
        raise DiscdiffError("two judges were given, judge and hugging_face; give one")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if hugging_face is not None:
        return HuggingFace(hugging_face, device=device)
    if checkpoint is None:
        return None
    trained = load(checkpoint.uri, device=device)
    judge = Own(checkpoint.label or checkpoint.method, trained.method, trained.network, trained.tokenizer)
    judge.check(tokenizer)
    return judge
