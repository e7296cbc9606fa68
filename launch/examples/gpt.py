"""A GPT that learns to write Python from the source of the standard library; gpt.toml is its run.

It shows what language models need: AdamW with warm-up, cosine and clipping, bfloat16, K in steps (asynchronous local SGD),
and a metric of their own.
"""

import math
import sysconfig
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asyncfeded import Batch, Data, Metric, Settings, Sums


class Block(nn.Module):
    """Attention and a feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(n, context, width) to the same."""
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)  # n, heads, 3, context, ...
        q, k, v = heads.unbind(2)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.feed(self.norm2(x))


class GPT(nn.Module):
    """Bytes (n, context) to scores (n, context, 256). The embedding is also the last layer: it is sent once."""

    def __init__(self, context: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        self.head.weight = self.tokens.weight
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """The scores of the byte that follows each."""
        places = self.places.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(self.tokens(x.int()) + places)))


class Source(Settings):
    """The modules of the standard library, dealt to the clients by name; every tenth is for testing."""

    metrics: ClassVar = {"perplexity": Metric("min", finish=math.exp), "loss": Metric("min", unit="nats")}
    context: int = 64
    """Bytes that the model sees."""
    width: int = 64
    """Width of the model; a multiple of `heads`."""
    heads: int = 4
    layers: int = 2
    files: int = 100
    """How many modules, the first by name."""

    def model(self) -> nn.Module:
        """A GPT with learned positions."""
        return GPT(self.context, self.width, self.heads, self.layers)

    def sizes(self, num_clients: int, seed: int) -> np.ndarray:
        """How many blocks of text each client has."""
        return np.array([len(self._blocks(files)) for files in self._dealt(num_clients)])

    def client_data(self, client: int, num_clients: int, seed: int) -> Data:
        """The blocks of one client."""
        return self._data(self._dealt(num_clients)[client])

    def test_data(self) -> Data:
        """The blocks of every tenth module."""
        return self._data(modules(self.files)[9::10])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy of the next byte, in nats."""
        inputs, targets = batch
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten().long())

    def score(self, model: nn.Module, batch: Batch) -> Sums:
        """The loss; perplexity is the exponential of its mean."""
        count = batch[1].numel()
        total = self.loss(model, batch) * count
        return {"perplexity": (total, count), "loss": (total, count)}

    def _dealt(self, num_clients: int) -> list[list[Path]]:
        train = [path for place, path in enumerate(modules(self.files)) if place % 10 != 9]
        return [train[client::num_clients] for client in range(num_clients)]

    def _blocks(self, files: list[Path]) -> np.ndarray:
        text = np.frombuffer(b"".join(path.read_bytes() for path in files), np.uint8)
        return text[: len(text) // (self.context + 1) * (self.context + 1)].reshape(-1, self.context + 1)

    def _data(self, files: list[Path]) -> Data:
        blocks = torch.from_numpy(self._blocks(files).copy())
        return Data(blocks[:, :-1], blocks[:, 1:])


@cache
def modules(count: int) -> list[Path]:
    """The source files of the standard library, the first by name."""
    return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:count]
