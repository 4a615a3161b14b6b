"""Batches, and the truth about a table of conditionals."""

import math
from itertools import permutations

import torch
from torch import Tensor

from nar_scale.data import Batch
from nar_scale.model import Decoder, Encoder
from nar_scale.objectives import AutoregressiveWrapper, NonAutoregressiveWrapper
from tests.model.helpers import TableNet, small_net


def batch_of(tokens: Tensor, lengths: Tensor | None = None, first: int = 0, classes: Tensor | None = None) -> Batch:
    """The samples `first`, `first + 1`, ... of the stream."""
    lengths = torch.full((len(tokens),), tokens.shape[1]) if lengths is None else lengths
    ids = torch.arange(first, first + len(tokens))
    return Batch(tokens, lengths, ids, torch.zeros_like(ids), ids, classes)


def rows_of(batch: Batch, rows: slice) -> Batch:
    fields = (batch.tokens, batch.lengths, batch.sample_ids, batch.epochs, batch.positions)
    return Batch(*(field[rows] for field in fields), batch.classes[rows] if batch.classes is not None else None)


def random_tokens(batch: int, n: int, num_tokens: int = 10, seed: int = 0) -> Tensor:
    return torch.randint(num_tokens, (batch, n), generator=torch.Generator().manual_seed(seed))


def small_nar(*, net: dict | None = None, **options) -> NonAutoregressiveWrapper:
    """Vocabulary 0..9 and the mask 10, 12 places, without BERT's corruption unless asked for."""
    options = {"mask_id": 10, "no_replace_prob": 0.0, "random_token_prob": 0.0, **options}
    return NonAutoregressiveWrapper(small_net(Encoder, **(net or {})), **options)


def small_ar(*, net: dict | None = None, **options) -> AutoregressiveWrapper:
    return AutoregressiveWrapper(small_net(Decoder, **(net or {})), **options)


def nelbo_by_all_orders(net: TableNet, tokens: Tensor, places: list[int], mask_id: int) -> float:
    """Mean over all orders of revealing `places` one by one of -log p(tokens there), in nats."""
    log_probs = net.table.detach().double()
    log_probs[..., mask_id] = -math.inf
    log_probs = log_probs.log_softmax(dim=-1)
    orders = list(permutations(places))
    total = 0.0
    for order in orders:
        visible = tokens.clone()
        visible[places] = mask_id
        for place in order:
            total -= float(log_probs[net.code(visible), place, tokens[place]])
            visible[place] = tokens[place]
    return total / len(orders)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    spread = torch.tensor(values, dtype=torch.float64)
    return float(spread.mean()), float(spread.std() / math.sqrt(len(values)))
