"""Whether the classifier of one checkpoint can lead the diffusion of another to a class.

Guidance asks p(label | x_t) of the very states that the diffusion passes through, so both must have seen the
same noise. With mask noise p(label | x_t) does not depend on how far noise has come, so a classifier that
does not read the time serves any schedule.
"""

from typing import Any

from discdiff.methods import Classifier
from discdiff.processes import Mask
from discdiff.training.checkpoint import Subject
from discdiff.types import DiscdiffError


def check_classifier(subject: Subject, classifier: Subject) -> None:
    """Raises DiscdiffError, with the reason, where a classifier can't lead what was trained as `subject`."""
    method = classifier.method
    if not isinstance(method, Classifier):
        raise DiscdiffError(
            f"the checkpoint of the classifier is of {method.kind}: give one of method classifier, "
            "trained on stores that are classes"
        )
    theirs, ours = _compared(classifier), _compared(subject)
    differing = [name for name in ours if ours[name] != theirs[name]]
    if differing:
        what = ", ".join(f"{name} ({theirs[name]}, not {ours[name]})" for name in differing)
        raise DiscdiffError(f"the classifier was trained with another {what}: make them agree")
    process = getattr(subject.method, "process", None)
    if not _same_noise(process, classifier, method):
        raise DiscdiffError(
            f"the classifier was trained on {_noise(method.process)} and {subject.method.kind} undoes "
            f"{_noise(process)}: train one on the same noise{_or_blind(process, method)}"
        )


def _same_noise(process: Any, classifier: Subject, method: Classifier) -> bool:
    if isinstance(process, Mask) and isinstance(method.process, Mask) and not classifier.backbone.time:
        return True
    return process == method.process


def _or_blind(process: Any, method: Classifier) -> str:
    both = isinstance(process, Mask) and isinstance(method.process, Mask)
    return ", or with backbone.time=false, on any schedule of mask noise" if both else ""


def _noise(process: Any) -> str:
    if process is None:
        return "no discrete noise"
    return f"{process.kind} noise, {getattr(process, 'schedule', process)!r}"


def _compared(subject: Subject) -> dict[str, object]:
    return {"tokenizer": subject.tokenizer, "vocab": subject.vocab, "length of rows": subject.length}
