"""The numbers of an evaluation under flat names that are the same for every family, and its protocol as "
"tags."""

from discdiff.evaluation.estimate import Estimate
from discdiff.evaluation.likelihood import Score
from discdiff.evaluation.page import Model
from discdiff.evaluation.quality import Quality


def of_score(score: Score | None, unigram: Score | None) -> dict[str, float]:
    """Likelihood, each value with its standard error under `..._se`."""
    found: dict[str, float] = {}
    if score is not None:
        names = ("nats_per_token", "bits_per_character", "bits_per_byte", "perplexity")
        found |= _named({name: getattr(score, name) for name in names})
        found |= {} if score.se_time is None else {"nats_per_token_se_time": score.se_time}
    if unigram is not None:
        found["unigram_bits_per_character"] = unigram.bits_per_character.value
    return found


def of_excess(model: Model) -> dict[str, float]:
    """What the model needs above the entropy of its data, where that is known."""
    found = {} if model.entropy is None else {"entropy_of_data": model.entropy}
    return found if model.excess is None else found | _named({"excess": model.excess})


def of_quality(row: Quality | None, real: Quality | None) -> dict[str, float]:
    """Sample metrics, and the same of real text under `real_...`."""
    found = {} if row is None else _row(row)
    found |= {} if real is None else {f"real_{name}": value for name, value in _row(real).items()}
    return found


def _row(row: Quality) -> dict[str, float]:
    estimates = {"entropy": row.entropy, "repetition": row.repetition, "self_bleu": row.self_bleu}
    found = {"pooled_entropy": row.pooled_entropy, "copied": float(row.copied)}
    found |= {f"distinct_{n}": value for n, value in row.distinct.items()}
    found |= {f"seen_{n}": value for n, value in row.seen.items()}
    if row.spelling is not None:
        estimates["spelling"] = row.spelling
    if row.judged is not None:
        estimates |= {"judge_perplexity": row.judged.perplexity}
        found |= {} if row.judged.mauve is None else {"mauve": row.judged.mauve}
    if row.distance is not None:
        found |= {"total_variation": row.distance.tv, "kl": row.distance.kl}
    return found | _named(estimates)


def _named(estimates: dict[str, Estimate]) -> dict[str, float]:
    values = {name: each.value for name, each in estimates.items()}
    return values | {f"{name}_se": each.se for name, each in estimates.items() if each.se is not None}


def tags(score: Score | None, row: Quality | None) -> dict[str, str]:
    """The protocol of every number, and the warnings."""
    found: dict[str, str] = {}
    if score is not None:
        found |= {f"protocol.{name}": str(text) for name, text in score.protocol.model_dump().items()}
    if row is not None and row.judged is not None:
        found |= {"protocol.judge": row.judged.judge, "protocol.mauve": row.judged.mauve_protocol}
    if row is not None and row.warnings:
        found["warnings"] = "; ".join(row.warnings)
    return {name: text for name, text in found.items() if text}
