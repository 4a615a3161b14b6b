"""Samples that hold several documents, each of which is to be trained on as if it stood alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_scale.model import TransformerWrapper
from nar_scale.objectives.terms import length_mask, require


def continues(documents: Tensor) -> Tensor:
    """Whether each token but a sample's first belongs to the document of the one before, bool `[batch, n - 1]`."""
    return documents[:, 1:] == documents[:, :-1]


def document_positions(documents: Tensor) -> Tensor:
    """Places counted from the first token of each document, int64 `[batch, n]`, from its number `[batch, n]`."""
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    first = F.pad(~continues(documents), (1, 0), value=True)
    return places - places.masked_fill(~first, 0).cummax(dim=1).values


def within_documents(
    net: TransformerWrapper, documents: Tensor, net_kwargs: dict[str, Any], places: int | None = None
) -> dict[str, Any]:
    """What to pass to the net so that each document runs on its own: `net_kwargs`, its number and its positions.

    Args:
        documents: int64 `[batch, n]`.
        net_kwargs: what is passed anyway; positions given there stay.
        places: how many tokens the net sees; all n if not given.

    Raises:
        ValueError: `prepend_embeds`, or a document longer than the learned positions (a RuntimeError from the device
            on GPUs).
    """
    if net_kwargs.get("prepend_embeds") is not None:
        raise ValueError("documents and prepend_embeds exclude each other: prepended embeddings belong to no document")
    positions = document_positions(documents)[:, :places]
    if net.pos_emb is not None:
        inside = (positions < net.max_seq_len).all()
        require(inside, f"a document exceeds max_seq_len {net.max_seq_len} of the learned positions; cut it")
    return {"documents": documents[:, :places], "positions": positions, **net_kwargs}


def check_documents(documents: Tensor, tokens: Tensor, lengths: Tensor | None) -> None:
    """Refuse what does not number the documents of `tokens`, int64 `[batch, n]`.

    Raises:
        ValueError: saying what is wrong; on a GPU, of numbers out of order, a RuntimeError from the device.
    """
    if documents.shape != tokens.shape:
        raise ValueError(
            f"documents of shape {tuple(documents.shape)} were given for tokens of shape {tuple(tokens.shape)}; "
            "number the document of every token"
        )
    falls = documents[:, 1:] < documents[:, :-1]
    if lengths is not None:
        falls = falls & length_mask(lengths - 1, falls.shape[1])
    require(~falls.any(), "document numbers fall; number them from left to right, and give the lens of padded samples")
