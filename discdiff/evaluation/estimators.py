"""The estimators of a bound, as one union."""

from typing import Annotated

from pydantic import Field

from discdiff.evaluation.importance import ImportanceWeighted
from discdiff.evaluation.likelihood import EveryStep, Likelihood

AnyEstimator = Annotated[Likelihood | EveryStep | ImportanceWeighted, Field(discriminator="kind")]
