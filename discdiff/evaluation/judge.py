"""A judge: a causal language model that reads samples and says how likely it finds them.

`Own` is one of our autoregressive checkpoints and reads token ids; `HuggingFace` is any causal language
model whose files are at hand and reads text. Both give nats and tokens per sample, and features for MAUVE:
the last hidden state at the last token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from discdiff.evaluation.estimate import mean, ratio
from discdiff.evaluation.likelihood import Likelihood, is_exact
from discdiff.evaluation.mauve import Mauve
from discdiff.evaluation.quality import Judged
from discdiff.types import Canvas, Condition, DiscdiffError


@dataclass(frozen=True)
class Reading:
    """What a judge made of N samples: `nats` [N], `tokens` [N] that it scored, `features` [N, D]."""

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    features: NDArray[np.float64]


@runtime_checkable
class Judge(Protocol):
    """Reads samples, as ids or as text, and names itself for the protocol."""

    @property
    def name(self) -> str: ...
    def read(self, canvases: Sequence[Canvas], texts: Sequence[str]) -> Reading: ...


@dataclass(frozen=True)
class Own:
    """One of our checkpoints with an exact likelihood and a causal network."""

    name: str
    method: Any
    network: nn.Module
    tokenizer: str
    """Fingerprint of the tokenizer it was trained with."""

    def check(self, tokenizer: str) -> None:
        """Raise `DiscdiffError` unless the samples are of this judge's tokenizer and it has an exact
        likelihood.
        """
        if tokenizer != self.tokenizer:
            raise DiscdiffError(
                f"judge {self.name} has another vocabulary: its tokenizer is {self.tokenizer[:12]}, the "
                f"samples' {tokenizer[:12]}; "
                "train a judge on this store, or name a Hugging Face model, which reads text"
            )
        if not is_exact(self.method):
            raise DiscdiffError(
                f"judge {self.name} is {self.method.kind}, which has only a bound; a judge must be "
                "autoregressive"
            )

    def read(self, canvases: Sequence[Canvas], texts: Sequence[str]) -> Reading:
        """Nats of every sample, each read alone from its first token. The texts are not used."""
        device = next(self.network.parameters()).device
        there = [canvas.to(device) for canvas in canvases]
        ledger = Likelihood().measure(self.method, self.network, there)
        with torch.inference_mode():
            features = [self._features(canvas) for canvas in there]
        return Reading(ledger.sequence_nats, ledger.tokens, np.concatenate(features))

    def _features(self, canvas: Canvas) -> NDArray[np.float64]:
        """The hidden state after the last token: the begin symbol (id V) is put in front and nothing is cut
        off. -> [B, D]
        """
        net: Any = self.network
        tokens = F.pad(canvas.tokens, (1, 0), value=net.vocab)
        time = torch.zeros(len(tokens), 1, dtype=torch.float64, device=tokens.device)
        return net.trunk(tokens, time, Condition())[:, -1].double().cpu().numpy()


@dataclass(frozen=True)
class HuggingFace:
    """A causal language model of `transformers`, from files at hand: nothing is downloaded."""

    path: str
    batch: int = 8
    context: int = 1024
    device: str = "cpu"

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    def read(self, canvases: Sequence[Canvas], texts: Sequence[str]) -> Reading:
        """Nats of every text but its first token, which has no context unless the model has a start token."""
        tokenizer, model = self._open()
        parts = [
            self._batch(tokenizer, model, texts[start : start + self.batch])
            for start in range(0, len(texts), self.batch)
        ]
        return Reading(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _open(self) -> tuple[Any, Any]:
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer  # type: ignore[import-not-found]
        except ImportError as error:
            raise DiscdiffError(
                "a Hugging Face judge needs the package transformers: pip install 'discdiff[judges]'"
            ) from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(self.path, local_files_only=True)
        except (OSError, ValueError) as error:
            raise DiscdiffError(
                f"judge {self.path} cannot be opened: give the folder of a causal language model with its "
                f"tokenizer ({error})"
            ) from error
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer, model.to(self.device).eval()

    def _batch(
        self, tokenizer: Any, model: Any, texts: Sequence[str]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        start = tokenizer.bos_token or ""
        given = tokenizer(
            [start + text for text in texts],
            return_tensors="pt",
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self.context,
            add_special_tokens=False,
        )
        ids, mask = given["input_ids"].to(model.device), given["attention_mask"].to(model.device)
        with torch.inference_mode():
            out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        log_p = out.logits[:, :-1].float().log_softmax(-1)
        nats = -log_p.gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]
        last = mask.sum(1) - 1
        features = out.hidden_states[-1][torch.arange(len(texts)), last.clamp(min=0)]
        found = (nats.double().sum(1), mask[:, 1:].sum(1), features.double())
        nats_of, tokens, features_of = (each.cpu().numpy() for each in found)
        return nats_of, tokens, features_of


def judged(judge: Judge, samples: Reading, real: Reading | None, mauve: Mauve) -> Judged:
    """Corpus perplexity, the mean of samples' perplexities, and MAUVE against real text where there is "
    "some."""
    scored = samples.tokens > 0
    nats, tokens = samples.nats[scored], samples.tokens[scored].astype(np.float64)
    if not np.isfinite(nats).all():
        raise DiscdiffError(
            f"judge {judge.name} gives NaN or infinity: its weights are broken; take another checkpoint"
        )
    close = real is not None and min(len(samples.features), len(real.features)) >= 2
    return Judged(
        judge=judge.name,
        perplexity=ratio(nats, tokens).exp(),
        sample_mean=mean(np.exp(nats / tokens)),
        mauve=mauve.compare(real.features, samples.features) if close and real is not None else None,
        mauve_protocol=_protocol(judge, mauve, samples, real) if close and real is not None else "",
    )


def _protocol(judge: Judge, mauve: Mauve, samples: Reading, real: Reading) -> str:
    clusters = mauve.clusters or max(2, round(min(len(samples.nats), len(real.nats)) / 10))
    return (
        f"last hidden state of {judge.name}, {len(samples.nats)} samples against {len(real.nats)} real "
        "texts, "
        f"{clusters} clusters, c = {mauve.scaling:g}"
    )
