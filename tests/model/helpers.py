"""Small nets, and nets that look their answers up in a table."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nar_scale.model import Decoder, Encoder, TransformerOutput, TransformerWrapper


def small_net(
    kind: type[Encoder] | type[Decoder], num_tokens: int = 11, max_seq_len: int = 12, **options: Any
) -> TransformerWrapper:
    """A transformer drawn with a fixed seed, with logits far enough apart that rounding does not decide."""
    torch.manual_seed(0)
    of_wrapper = {
        "tie_embedding",
        "tie_embedding_scale",
        "add_continuous_pred_head",
        "attn_z_loss_weight",
        "logits_dim",
        "logits_chunk_size",
    }
    layers = {name: value for name, value in options.items() if name not in of_wrapper}
    net = TransformerWrapper(
        num_tokens=num_tokens,
        max_seq_len=max_seq_len,
        attn_layers=kind(**{"dim": 16, "depth": 2, "heads": 2, **layers}),
        **{name: value for name, value in options.items() if name in of_wrapper},
    )
    with torch.no_grad():
        net.token_emb.weight.mul_(50)
        if not options.get("tie_embedding"):
            net.to_logits.weight.mul_(5)
    return net


class TableHead(nn.Module):
    """Stands in for a `Head`: the embeddings are the logits."""

    excluded: int | None = None

    def forward(self, embeddings: Tensor, reduce: Callable[..., Tensor] | None = None, *per_token: Tensor) -> Tensor:
        return embeddings if reduce is None else reduce(embeddings.clone(), *per_token)


class TableNet(nn.Module):
    """Stands in for a `TransformerWrapper`: arbitrary logits for each place given all the tokens it sees.

    An encoder sees the whole sequence, a decoder what is up to the place.

    Attributes:
        table: `[num_tokens ** n, n, num_tokens]`; row `code(tokens)`, of the visible part alone for a decoder.
        seen: the token ids of every call.
    """

    def __init__(self, n: int, num_tokens: int, causal: bool = False, seed: int = 0):
        super().__init__()
        self.max_seq_len, self.num_tokens, self.emb_dim, self.causal = n, num_tokens, num_tokens, causal
        self.add_continuous_pred_head, self.attn_z_loss_weight = False, 0.0
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(num_tokens**n, n, num_tokens, generator=generator))
        self.token_emb = nn.Embedding(num_tokens, 1)
        self.to_logits = TableHead()
        self.seen: list[Tensor] = []

    def code(self, tokens: Tensor) -> Tensor:
        """Number the sequences `[..., n]`; for a decoder, their beginnings at each place `[..., n]`."""
        digits = tokens * self.num_tokens ** torch.arange(tokens.shape[-1])
        return digits.cumsum(dim=-1) if self.causal else digits.sum(dim=-1)

    def forward(
        self, x: Tensor, *, return_output: bool = False, return_logits_and_embeddings: bool = False, **_: Any
    ) -> Any:
        self.seen.append(x)
        places = torch.arange(x.shape[1])
        codes = self.code(x)
        logits = self.table[codes, places] if self.causal else self.table[codes][:, places]
        if return_output:
            return TransformerOutput(logits, None)
        return (logits.clone(), logits) if return_logits_and_embeddings else logits
