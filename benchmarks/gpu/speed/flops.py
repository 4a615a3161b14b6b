"""FLOPs of training by several counts, so that an MFU can be compared with those that others report."""

from __future__ import annotations

from dataclasses import dataclass

from nar_scale.model import TransformerWrapper
from nar_scale.model.layers import Embedding
from nar_scale.model.parameters import full_size, is_matrix
from nar_scale.planning.flops import flops_per_token


@dataclass(frozen=True)
class TokenFlops:
    """FLOPs of forward and backward pass for a token of a batch.

    With L layers of H heads with Q channels, and n tokens in a sequence:

    Attributes:
        ours: 6 N + 12 L H Q n, of all weights but embedding tables (`nar_scale.planning.flops`).
        nanochat: the same of the matrices among them, as its `estimate_flops` has it (github.com/karpathy/nanochat).
        palm: the same of all weights, tables included (arXiv:2204.02311, appendix B).
        computed: what the device has to do: the head for the tokens that are predicted alone, with its logits computed
            twice where there are several chunks of them, and of causal attention one half.
    """

    ours: float
    nanochat: float
    palm: float
    computed: float

    @classmethod
    def of(cls, net: TransformerWrapper, predicted: float, head_passes: int) -> TokenFlops:
        """Those of a net.

        Args:
            predicted: the part of the tokens that goes through the head.
            head_passes: forward passes of the head in a step, 2 where logits are computed again.
        """
        layers, head = net.attn_layers, full_size(net.to_logits.weight)
        attention = 12.0 * layers.depth * layers.heads * layers.dim_head * net.max_seq_len
        tables = {id(module.weight) for module in net.modules() if isinstance(module, Embedding)}
        tables -= {id(net.to_logits.weight)}
        parameters = list(net.parameters())
        matrices = sum(full_size(each) for each in parameters if is_matrix(each) and id(each) not in tables)
        pairs_seen = 0.5 if net.causal else 1.0
        return cls(
            ours=flops_per_token(net),
            nanochat=6.0 * matrices + attention,
            palm=6.0 * sum(map(full_size, parameters)) + attention,
            computed=6.0 * (matrices - head) + (4 + 2 * head_passes) * head * predicted + attention * pairs_seen,
        )
