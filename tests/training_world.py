"""What each process runs in the tests of parallelism: `python training_world.py RANK SIZE FOLDER`."""

import sys
from pathlib import Path
from typing import get_args

import torch
import torch.distributed as dist
from training_problem import RECIPE, SUBJECT, VOCAB, Labelled, Table, network, weights

from discdiff.methods import AnyMethod, Discriminative, Duo, DuoDistilled, Follows, Method
from discdiff.training import Checkpoints, DataParallel, FullyShard, fit, start_from

MICRO = RECIPE.model_copy(update={"microbatch": 2})


class Stop(Exception):  # noqa: N818
    pass


def run(parallel, folder: Path | None = None, stop: int | None = None):
    """Train; the logs, the weights after every step, and the averaged weights at the end."""
    net, logs, path = network(), [], []

    def log(step, metrics):
        logs.append((step, metrics))
        if "loss" in metrics:
            path.append(weights(net))
        if step == stop:
            raise Stop

    checkpoints = None if folder is None else Checkpoints(str(folder), SUBJECT, MICRO)
    fit(
        SUBJECT.method,
        net,
        Table(),
        MICRO,
        validation=Table(seed=2),
        parallel=parallel,
        checkpoints=checkpoints,
        log=log,
    )
    return {"logs": logs, "path": path, "average": weights(net)}


def interrupted(parallel, folder: Path):
    try:
        run(parallel, folder, stop=7)
    except Stop:
        dist.barrier()
        return run(parallel, folder)
    raise AssertionError("the run was not interrupted")


def families(parallel) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of every family after a few steps: all parameters take part, whatever the parallelism."""
    recipe = MICRO.model_copy(update={"steps": 3, "warmup": 0, "validate_rows": 6})
    found = {}
    for method in methods():
        torch.manual_seed(0)
        rows, labels = (Labelled, 3) if isinstance(method, Discriminative) else (Table, 0)
        net = method.network(SUBJECT.backbone.model_copy(update={"labels": labels}), VOCAB)
        if isinstance(method, Follows):
            start_from(method, net, trained_before(method.first))
        fit(method, net, rows(), recipe, validation=rows(seed=2), parallel=parallel)
        found[method.kind] = weights(net)
    return found


def trained_before(method: Method) -> torch.nn.Module:
    """A network to start from that says something, as a trained one does."""
    net = method.network(SUBJECT.backbone, VOCAB)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


def methods() -> list[Method]:
    """Every family that has defaults for all its fields, and students of such."""
    kinds = get_args(get_args(AnyMethod)[0])
    needs = {kind for kind in kinds if any(field.is_required() for field in kind.model_fields.values())}
    return [*(kind() for kind in kinds if kind not in needs), DuoDistilled(teacher=Duo(), rounds=3)]


def main(rank: int, size: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    found = {
        "replicas": run(DataParallel()),
        "shards": run(FullyShard()),
        "replicas resumed": interrupted(DataParallel(), folder / "replicas"),
        "shards resumed": interrupted(FullyShard(), folder / "shards"),
        "families in replicas": families(DataParallel()),
        "families in shards": families(FullyShard()),
    }
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
