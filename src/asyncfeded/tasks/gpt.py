"""A GPT: a transformer that predicts the next token from the tokens before it (Radford et al. 2019), norms first."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GPT(nn.Module):
    """Scores of the token behind each token of a block.

    The table that embeds tokens also gives the scores (Press and Wolf 2017, arXiv 1608.05859): it is one parameter, which is
    sent once. Nothing masks the attention but an argument, so that the module has no buffers.

    Args:
        vocabulary: number of tokens.
        context: tokens of the longest block.
        layers: blocks of attention and two dense layers.
        heads: of each attention; they divide `width`.
        width: length of the vector of a token.
    """

    def __init__(self, vocabulary: int, context: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(context, width)
        self.layers = nn.ModuleList(Layer(heads, width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # what is added to the residual begins smaller, the more often it is added
                last = name.endswith(("attended.weight", "dense.2.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if last else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens, integers (n, length), to scores (n, length, vocabulary)."""
        states = self.tokens(tokens.int()) + self.places.weight[: tokens.shape[1]]
        for layer in self.layers:
            states = layer(states)
        return F.linear(self.norm(states), self.tokens.weight)


class Layer(nn.Module):
    """Attention to the tokens before, and two dense layers, each added to what comes in.

    Args:
        heads: of the attention.
        width: length of the vector of a token.
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_dense = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width, bias=False)
        self.attended = nn.Linear(width, width, bias=False)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, states: Tensor) -> Tensor:
        """Float32 (n, length, width) to the same shape."""
        n, length, width = states.shape
        asked = self.attention(self.norm_attention(states)).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = torch.unbind(asked.permute(2, 0, 3, 1, 4))
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        states = states + self.attended(seen.transpose(1, 2).reshape(n, length, width))
        out: Tensor = states + self.dense(self.norm_dense(states))
        return out
