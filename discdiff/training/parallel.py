"""Where training runs: one device, replicas, or shards. The mathematics is the same for all.

Gradients of replicas and shards are averaged over ranks, so a rank's part of the loss is weighted by the
number of ranks. Nothing here starts processes: call inside a program that torchrun, Ray or you have
started.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal, cast

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from discdiff.training.loss import Loss
from discdiff.types import DiscdiffError, Value


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def current(cls, device: torch.device) -> "World":
        if not dist.is_initialized():
            return cls(0, 1, device)
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def max(self, tensor: Tensor) -> Tensor:
        """The largest over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor


class Single(Value, frozen=True):
    """One process on one device."""

    kind: Literal["single"] = "single"

    def wrap(self, loss: Loss, world: World) -> nn.Module:
        if world.size > 1:
            raise DiscdiffError(
                f"{world.size} processes train together and the parallelism is single: "
                "take data_parallel or fully_shard"
            )
        return loss

    def accumulate(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """The context of one micro-batch's forward and backward; gradients are shared at the last."""
        return nullcontext()


class DataParallel(Value, frozen=True):
    """A replica on each rank, gradients averaged: DistributedDataParallel."""

    kind: Literal["data_parallel"] = "data_parallel"

    def wrap(self, loss: Loss, world: World) -> nn.Module:
        _need_group(self.kind)
        return DistributedDataParallel(loss, gradient_as_bucket_view=True)

    def accumulate(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """The context of one micro-batch's forward and backward; gradients are shared at the last."""
        return nullcontext() if last else cast(DistributedDataParallel, module).no_sync()


class FullyShard(Value, frozen=True):
    """Weights, gradients and optimizer cut into shards over the ranks, block by block: FSDP2.

    Zhao et al. 2023, arXiv:2304.11277. Parameters are gathered in float32 and given back after each use.
    """

    kind: Literal["fully_shard"] = "fully_shard"

    def wrap(self, loss: Loss, world: World) -> nn.Module:
        _need_group(self.kind)
        for tensor in (*loss.parameters(), *loss.buffers()):
            dist.broadcast(tensor.detach(), src=0)
        mesh = init_device_mesh(world.device.type, (world.size,))
        lists = [m for m in loss.modules() if isinstance(m, nn.ModuleList)]
        for block in (block for blocks in reversed(lists) for block in blocks):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        # The root too gives its weights back after a forward: averaged weights that validation gathered
        # must not stay.
        fully_shard(loss, mesh=mesh, reshard_after_forward=True)
        register_fsdp_forward_method(loss, "measures")
        return loss

    def accumulate(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """The context of one micro-batch's forward and backward; gradients are shared at the last."""
        cast(FSDPModule, module).set_requires_gradient_sync(last)
        return nullcontext()


AnyParallel = Annotated[Single | DataParallel | FullyShard, Field(discriminator="kind")]


def _need_group(kind: str) -> None:
    if not dist.is_initialized():
        raise DiscdiffError(
            f"{kind} needs a process group: start the program with torchrun and call "
            "torch.distributed.init_process_group, or take single"
        )
