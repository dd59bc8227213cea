"""Why a stage failed: the first cause, in one line, out of all that was wrapped around it."""

from collections.abc import Mapping

from pydantic import ValidationError

WRAPPERS = ("cause", "controller_failure", "_base_exc", "base_exception")


class StageError(RuntimeError):
    """A stage failed for a reason that is not the user's specification."""

    def __init__(self, label: str, reason: BaseException) -> None:
        super().__init__(f"{label} failed: {sentence(reason)}")
        self.reason = reason


def cause(error: BaseException) -> BaseException:
    """What happened first, unwrapped from Ray's task, worker group and controller errors."""
    failures = getattr(error, "worker_failures", None)
    if isinstance(failures, Mapping) and failures:
        return cause(failures[min(failures)])
    for name in WRAPPERS:
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException) and inner is not error:
            return cause(inner)
    return error


def sentence(error: BaseException) -> str:
    """An error as one line."""
    if isinstance(error, ValidationError):
        return validation(error)
    text = " ".join(str(error).split())
    name = type(error).__name__
    if isinstance(error, ValueError) and type(error) is not ValueError:
        return text or name
    return f"{name}: {text}" if text else name


def validation(error: ValidationError) -> str:
    """Each field that is wrong: what was given and what is allowed."""
    return "; ".join(_field(each["loc"], each["msg"], each["input"], each["type"]) for each in error.errors())


def _field(location: tuple[int | str, ...], message: str, given: object, kind: str) -> str:
    name = ".".join(str(part) for part in location) or "specification"
    match kind:
        case "extra_forbidden":
            return f"{name} is no field"
        case "missing":
            return f"{name} is missing"
        case _:
            shown = repr(given)
            shown = shown if len(shown) <= 80 else shown[:77] + "..."
            return f"{name} = {shown}: {message[:1].lower()}{message[1:]}"
