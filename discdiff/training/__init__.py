"""Training: `fit` a network, resume it anywhere, `load` what came out."""

from discdiff.training.checkpoint import Checkpoints, Subject
from discdiff.training.fit import fit
from discdiff.training.guided import check_classifier
from discdiff.training.loss import Loss, Rows
from discdiff.training.meter import Diverged
from discdiff.training.parallel import AnyParallel, DataParallel, FullyShard, Single, World
from discdiff.training.recipe import AnyDecay, Constant, Cosine, Recipe
from discdiff.training.start import check_start, start_from
from discdiff.training.trained import Trained, load

__all__ = [
    "AnyDecay",
    "AnyParallel",
    "Checkpoints",
    "Constant",
    "Cosine",
    "DataParallel",
    "Diverged",
    "FullyShard",
    "Loss",
    "Recipe",
    "Rows",
    "Single",
    "Subject",
    "Trained",
    "World",
    "check_classifier",
    "check_start",
    "fit",
    "load",
    "start_from",
]
