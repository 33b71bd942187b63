"""Training rows that every generation takes, and what a model makes of them."""

from __future__ import annotations

import torch

from glmkit.models.tiny import IDS

BLANK = [IDS["[gMASK]"], IDS["<sop>"]]


def rows(count: int = 2, answer: int = 5) -> dict[str, torch.Tensor]:
    """Return training rows that every generation takes, with labels for the answers."""
    drawn = torch.randint(3, 200, (count, 6 + answer), generator=torch.Generator().manual_seed(0))
    ids = torch.cat((drawn[:, :6], torch.tensor([BLANK] * count), drawn[:, 6:]), dim=1)
    labels = ids.clone()
    labels[:, :8] = -100
    return {"input_ids": ids, "labels": labels}


def scores(model: torch.nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs).logits


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.train()(**rows()).loss.backward()
    return {
        name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None
    }
