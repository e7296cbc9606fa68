"""Low-rank adapters (LoRA, arXiv 2106.09685) on a frozen language model of `transformers`; lora.toml is its run.

Only the adapters travel: 4 x rank x width numbers a layer. The frozen model is loaded on every rank from the same place.
"""

import math
import sysconfig
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from asyncfeded import Batch, Data, Metric, Settings, Sums


class Adapted(nn.Module):
    """A frozen layer y = f(x) of one input, and an adapter beside it: y = f(x) + x A B."""

    def __init__(self, frozen: nn.Module, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.frozen = frozen
        self.a = nn.Parameter(torch.randn(inputs, rank) / math.sqrt(inputs))
        self.b = nn.Parameter(torch.zeros(rank, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return self.frozen(x) + x @ self.a @ self.b


class Finetune(Settings):
    """Modules of Python's standard library, dealt to the clients by name; every tenth is for testing."""

    metrics: ClassVar = {"perplexity": Metric("min", finish=math.exp), "loss": Metric("min", unit="nats")}
    base: str
    """A GPT-2: a folder, or its name on the Hugging Face hub."""
    rank: int = 8
    """Rank of the adapters."""
    context: int = 64
    """Tokens that the model sees."""
    files: int = 40
    """How many modules, the first by name."""

    def model(self) -> nn.Module:
        """The frozen model, with adapters at the attention of every layer."""
        model = AutoModelForCausalLM.from_pretrained(self.base).float().requires_grad_(False)
        for block in model.transformer.h:
            width = model.config.n_embd
            block.attn.c_attn = Adapted(block.attn.c_attn, width, 3 * width, self.rank)
        return model

    def sizes(self, num_clients: int, seed: int) -> np.ndarray:
        """How many blocks of text each client has."""
        return np.array([len(self.client_data(client, num_clients, seed).inputs) for client in range(num_clients)])

    def client_data(self, client: int, num_clients: int, seed: int) -> Data:
        """The blocks of one client."""
        train = [path for place, path in enumerate(self._modules()) if place % 10 != 9]
        return self._blocks(train[client::num_clients])

    def test_data(self) -> Data:
        """The blocks of every tenth module."""
        return self._blocks(self._modules()[9::10])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy of the next token, in nats."""
        inputs, targets = batch
        return F.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten())

    def score(self, model: nn.Module, batch: Batch) -> Sums:
        """The loss; perplexity is the exponential of its mean."""
        count = batch[1].numel()
        total = self.loss(model, batch) * count
        return {"perplexity": (total, count), "loss": (total, count)}

    def _modules(self) -> list[Path]:
        return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[: self.files]

    def _blocks(self, files: list[Path]) -> Data:
        text = "".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
        tokens = torch.tensor(AutoTokenizer.from_pretrained(self.base)(text)["input_ids"])
        length = self.context + 1
        blocks = tokens[: len(tokens) // length * length].view(-1, length)
        return Data(blocks[:, :-1].contiguous(), blocks[:, 1:].contiguous())
