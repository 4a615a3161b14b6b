"""The names of the fields that a prepared sample has."""

TOKENS_FIELD = "tokens.npy"


CLASS_FIELD = "cls"


DOCUMENTS_FIELD = "documents.npy"
