"""Which split a document belongs to, where the corpus has no published ones: decided by its text alone."""

from typing import Annotated, Literal

import xxhash
from pydantic import Field, model_validator

from discdiff.types import Value

SPLITS = ("train", "validation", "test")

Fraction = Annotated[float, Field(ge=0, lt=1)]


class ByHash(Value, frozen=True):
    """Train, validation and test by the 64-bit XXH3 of a document's UTF-8.

    A document stays where it is when others come or go, and equal documents stay together. Fractions are of
    documents, in expectation.
    """

    kind: Literal["by-hash"] = "by-hash"
    validation: Fraction = 0.1
    test: Fraction = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> "ByHash":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must be less than 1")
        return self

    def of(self, text: bytes) -> str:
        """The split of a document."""
        u = xxhash.xxh3_64_intdigest(text, self.seed) / 2**64
        return "test" if u < self.test else "validation" if u < self.test + self.validation else "train"

    @property
    def wanted(self) -> tuple[str, ...]:
        """The splits that must not be empty."""
        fractions = {"train": 1.0, "validation": self.validation, "test": self.test}
        return tuple(name for name, fraction in fractions.items() if fraction)
