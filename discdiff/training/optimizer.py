"""AdamW with weight decay on matrices only, and gradient clipping that knows about shards."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from discdiff.training.recipe import Recipe


def adamw(network: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """The optimizer of a recipe: matrices decay; embeddings, biases and other vectors do not.

    AdamW: Loshchilov and Hutter 2017, arXiv:1711.05101.
    """
    embeddings = {id(p) for m in network.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    trained = [p for p in network.parameters() if p.requires_grad]
    decays = [p.ndim >= 2 and id(p) not in embeddings for p in trained]
    groups = [
        {
            "params": [p for p, d in zip(trained, decays, strict=True) if d],
            "weight_decay": recipe.weight_decay,
        },
        {"params": [p for p, d in zip(trained, decays, strict=True) if not d], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def clip(network: nn.Module, limit: float) -> Tensor:
    """Scale the gradients to a norm of at most `limit` over all shards; returns the norm that they had."""
    parameters = [p for p in network.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
