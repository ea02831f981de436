"""Bottleneck adapters: small layers between the frozen ones."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Adapter(nn.Module):
    """Adds to states ``[..., D]`` what a ReLU network with ``bottleneck`` hidden units makes of them.

    There is one in each layer, after the feed-forward half and before its residual connection: of the two places of
    Houlsby et al. (2019), the one that Pfeiffer et al. (2021) found to be enough. It begins as the identity.
    """

    def __init__(self, dim: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, bottleneck), nn.Linear(bottleneck, dim)
        nn.init.normal_(self.down.weight, std=0.02)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, states: Tensor) -> Tensor:
        return states + self.up(F.relu(self.down(states)))
