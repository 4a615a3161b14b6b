"""Comparing the numbers of documents and of bytes of text that `dataset.json` states with the tokens that there are."""

import numpy as np

from nar_scale.data.inspection.verification import SplitVerification
from nar_scale.data.shards.dataset_info import SplitInfo
from nar_scale.data.tokenizers import ByteTokenizer, Tokenizer

TOLERANCE = 8  # a token may be shorter or longer than its text alone: spaces, pieces of letters, unknown words


def wrong_text_count(found: SplitVerification, stated: SplitInfo, tokenizer: Tokenizer | None) -> str | None:
    """Return what is wrong with the documents and bytes of a split, as a clause; None if they fit its tokens.

    Of bytes as tokens both follow exactly, as each document has its bytes and one end token. Other tokenizers give
    bounds: a document has an end token, and the bytes are about as many as the texts of all tokens have.

    Args:
        found: what the shards hold.
        stated: what `dataset.json` says.
        tokenizer: of the data set; None if there is none, or the package it needs is not installed.
    """
    if stated.documents > found.tokens:
        return f"{stated.documents:,} documents, its shards have {found.tokens:,} tokens"
    if tokenizer is None:
        return None
    ends = int(found.histogram[tokenizer.end_token])
    of_bytes = tokenizer.name == ByteTokenizer.name
    if stated.documents > ends or (of_bytes and stated.bytes and stated.documents < ends):
        return f"{stated.documents:,} documents, its shards have {ends:,} end tokens"
    if stated.bytes == 0:
        return None  # some of the input was tokens
    if of_bytes:
        text = found.tokens - ends
        return None if stated.bytes == text else f"{stated.bytes:,} bytes of text, its shards have {text:,}"
    text = _text_bytes(found.histogram, tokenizer)
    if text // TOLERANCE <= stated.bytes <= TOLERANCE * (text + found.tokens):
        return None
    return f"{stated.bytes:,} bytes of text, its tokens are those of about {text:,}"


def _text_bytes(histogram: np.ndarray, tokenizer: Tokenizer) -> int:
    """Return about how many bytes the text of tokens has of which int64 `[vocabulary]` is the histogram."""
    used = [token for token in np.flatnonzero(histogram).tolist() if token != tokenizer.end_token]
    return sum(int(histogram[token]) * len(tokenizer.decode([token]).encode(errors="replace")) for token in used)
