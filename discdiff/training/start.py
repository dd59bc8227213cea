"""Where training starts: from weights drawn by the seed, or from what another run has learned.

A family that `Follows` another needs a checkpoint of that other and says what it takes from it; any other may
be given a checkpoint of a network of its own shape, all of which is copied.
"""

from torch import Tensor, nn

from discdiff.methods import Follows, Method
from discdiff.training.checkpoint import Subject
from discdiff.types import DiscdiffError


def check_start(subject: Subject, start: Subject | None) -> None:
    """Whether training of `subject` can start from a checkpoint of `start`, asked before any work.

    Raises DiscdiffError where one is needed and not given, or where the given one is of something else.
    """
    method = subject.method
    if isinstance(method, Follows) and start is None:
        raise DiscdiffError(
            f"{method.kind} starts from a trained {method.first.kind} and no checkpoint was given: "
            f"train {method.first.kind} on the same tokens and give its folder as start"
        )
    if start is None:
        return
    if isinstance(method, Follows) and start.method != method.first:
        raise DiscdiffError(
            f"{method.kind} starts from {method.first!r} and the checkpoint is of {start.method!r}: "
            "make them agree, by another checkpoint or in the method's own fields"
        )
    ours, theirs = (_compared(each) for each in (subject, start))
    differing = [name for name in ours if ours[name] != theirs[name]]
    if differing:
        what = ", ".join(f"{name} ({theirs[name]}, not {ours[name]})" for name in differing)
        raise DiscdiffError(f"the checkpoint to start from was trained with another {what}: make them agree")


def start_from(method: Method, network: nn.Module, trained: nn.Module) -> None:
    """Put into a new network what it takes from a trained one."""
    if isinstance(method, Follows):
        method.begin(network, trained)
        return
    ours, theirs = network.state_dict(), trained.state_dict()
    wrong = [name for name in {**ours, **theirs} if _shape(ours, name) != _shape(theirs, name)]
    if wrong:
        raise DiscdiffError(
            f"the checkpoint to start from has a network of another shape, in {wrong[0]}: "
            f"give one of {method.kind} with the same backbone"
        )
    network.load_state_dict(theirs)


def _shape(state: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None


def _compared(subject: Subject) -> dict[str, object]:
    return {"tokenizer": subject.tokenizer, "backbone": subject.backbone, "vocab": subject.vocab}
