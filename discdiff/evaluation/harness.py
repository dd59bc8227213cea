"""An adapter to lm-evaluation-harness: `lm_eval.simple_evaluate(model=adapter(continuations), tasks=[...])`.

Needs the package `lm_eval`, which is the extra `harness`. Results carry the type of the bound and the errors
of the estimates in the model's info.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from discdiff.evaluation.continuations import Continuations
from discdiff.evaluation.estimate import Estimate
from discdiff.types import DiscdiffError


def adapter(model: Continuations) -> Any:
    """An `lm_eval.api.model.LM` of a model. Raises `DiscdiffError` where `lm_eval` is not installed.

    No continuation is ever reported as greedy: a diffusion has no greedy decoding that a likelihood could
    be checked against, so tasks that score exact greedy matches read 0.
    """
    try:
        from lm_eval.api.model import LM  # type: ignore[import-not-found]
    except ImportError as error:
        raise DiscdiffError(
            "the harness needs the package lm_eval: pip install 'discdiff[harness]'"
        ) from error

    class Adapter(LM):  # pyright: ignore[reportUntypedBaseClass]
        """Likelihoods of a model for the harness; `errors` keeps the standard error of each that was "
        "asked."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[float | None] = []

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            found = model.log_likelihoods([request.args for request in requests])
            return [(value, False) for value in self._kept(found)]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            return self._kept(model.log_likelihood_of([request.args[0] for request in requests]))

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return [_cut(model, *request.args) for request in requests]

        def get_model_info(self) -> dict[str, Any]:
            """What the harness writes beside the results."""
            known = [each for each in self.errors if each is not None]
            error = float(np.sqrt(np.mean(np.square(known)))) if known else None
            return {"likelihood": model.bound, "likelihood_standard_error_nats": error}

        def _kept(self, found: Sequence[Estimate]) -> list[float]:
            self.errors += [each.se for each in found]
            return [each.value for each in found]

    return Adapter()


def _cut(model: Continuations, context: str, options: dict[str, Any]) -> str:
    """A continuation up to the first of the task's stop strings."""
    text = model.write(context, int(options.get("max_gen_toks", model.length // 2)))
    until = options.get("until") or []
    ends = [text.find(stop) for stop in ([until] if isinstance(until, str) else until)]
    return text[: min([end for end in ends if end >= 0], default=len(text))]
