"""A trained model, opened from a checkpoint for evaluation and generation."""

from dataclasses import dataclass

import torch
from torch import nn

from discdiff.methods import AnyMethod
from discdiff.training.checkpoint import load_averaged, open_commit
from discdiff.types import DiscdiffError


@dataclass(frozen=True)
class Trained:
    """A method and its network with the averaged weights, in eval mode and float32."""

    method: AnyMethod
    network: nn.Module
    tokenizer: str
    """Fingerprint of the tokenizer it was trained with."""
    vocab: int
    length: int
    step: int


def load(uri: str, *, tokenizer: str | None = None, device: torch.device | str = "cpu") -> Trained:
    """Open a checkpoint, or the newest of a run's folder, on one device.

    Raises `DiscdiffError` if it is not a whole checkpoint of discdiff, or if a `tokenizer` is given, by its
    fingerprint, that it was not trained with.
    """
    folder, commit = open_commit(uri)
    subject = commit.subject
    if tokenizer is not None and tokenizer != subject.tokenizer:
        raise DiscdiffError(
            f"{uri} was trained with tokenizer {subject.tokenizer[:12]} and the data is of {tokenizer[:12]}: "
            "use the tokens it was trained on, or train on these"
        )
    network = subject.build(seed=0)
    load_averaged(folder, commit, network)
    return Trained(
        subject.method,
        network.to(device).eval(),
        subject.tokenizer,
        subject.vocab,
        subject.length,
        commit.step,
    )
