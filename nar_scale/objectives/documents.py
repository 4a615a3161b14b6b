"""Samples that hold several documents, each of which is trained on as if it were a sample of its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_scale.model import TransformerWrapper
from nar_scale.objectives.terms import length_mask, require


def continues(documents: Tensor) -> Tensor:
    """Whether each token but the first of a sample belongs to the document of the previous one, bool `[batch, n - 1]`.

    Args:
        documents: int64 `[batch, n]`, the number of the document that each token belongs to.
    """
    return documents[:, 1:] == documents[:, :-1]


def document_positions(documents: Tensor) -> Tensor:
    """Positions counted from the first token of each document, int64 `[batch, n]`.

    Args:
        documents: int64 `[batch, n]`, the number of the document that each token belongs to.
    """
    positions = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    first = F.pad(~continues(documents), (1, 0), value=True)
    return positions - positions.masked_fill(~first, 0).cummax(dim=1).values


def within_documents(
    net: TransformerWrapper, documents: Tensor, net_kwargs: dict[str, Any], length: int | None = None
) -> dict[str, Any]:
    """The arguments of a network with which no document sees another one and each has positions from 0.

    Args:
        net: the network.
        documents: int64 `[batch, n]`, the number of the document that each token belongs to.
        net_kwargs: further arguments of the network; positions among them are kept.
        length: number of tokens that the network sees; all n if not given.

    Raises:
        ValueError: `prepend_embeds` are among the arguments, or a document is longer than the learned positions (on
            GPUs a RuntimeError from the device).
    """
    if net_kwargs.get("prepend_embeds") is not None:
        raise ValueError("documents and prepend_embeds exclude each other: prepended embeddings belong to no document")
    positions = document_positions(documents)[:, :length]
    if net.pos_emb is not None:
        inside = (positions < net.max_seq_len).all()
        require(inside, f"a document exceeds max_seq_len {net.max_seq_len} of the learned positions; cut it")
    return {"documents": documents[:, :length], "positions": positions, **net_kwargs}


def check_documents(documents: Tensor, tokens: Tensor, lengths: Tensor | None) -> None:
    """Refuse document numbers that do not fit the tokens.

    Args:
        documents: of the shape of `tokens`, and never falling from left to right.
        tokens: int64 `[batch, n]`.
        lengths: int64 `[batch]`, true lengths of padded sequences; None if none is padded.

    Raises:
        ValueError: the shape is wrong, or numbers fall (on GPUs a RuntimeError from the device).
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
