"""A stage: a typed function from a frozen specification to an artifact, run at most once per specification.

    @stage(version=1)
    def train(spec: Train, work: Work) -> Checkpoint: ...

Only the specification counts in the key. Where and how wide a body runs is the runner's business
(`work.placement`) and never a field of a specification, so another cluster finds the same artifacts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, get_type_hints

from discdiff.types import Value
from pipelines.artifacts import Artifact
from pipelines.key import key
from pipelines.work import Work

S = TypeVar("S", bound=Value)
A = TypeVar("A", bound=Artifact)


@dataclass(frozen=True)
class Stage(Generic[S, A]):
    """A body with its version; calling it runs the body, `Runner` runs it once."""

    body: Callable[[S, Work], A]
    version: int
    resumable: bool

    @property
    def name(self) -> str:
        return self.body.__name__

    @property
    def spec(self) -> type[S]:
        """The type of the specification."""
        hints = get_type_hints(self.body)
        return next(hint for name, hint in hints.items() if name != "return")

    @property
    def artifact(self) -> type[A]:
        """The type of the artifact."""
        return get_type_hints(self.body)["return"]

    def key(self, spec: S) -> str:
        """The stage's name and a hash of name, version and specification."""
        return key(self.name, self.version, spec)

    def title(self, spec: S) -> str:
        """The stage in words, with what the specification's `label` adds."""
        return f"{self.name} {label(spec)}".strip()

    def __call__(self, spec: S, work: Work) -> A:
        return self.body(spec, work)


def label(spec: Value) -> str:
    """What a specification is called: its `label`, if it has one."""
    return str(getattr(spec, "label", ""))


def stage(*, version: int, resumable: bool = False) -> Callable[[Callable[[S, Work], A]], Stage[S, A]]:
    """Make a stage of a body.

    Raise `version` when the body's result changes for an unchanged specification. A `resumable` body finds in
    its place what an interrupted attempt left and goes on from there; any other finds its place empty.
    """

    def wrap(body: Callable[[S, Work], A]) -> Stage[S, A]:
        return Stage(body, version, resumable)

    return wrap
