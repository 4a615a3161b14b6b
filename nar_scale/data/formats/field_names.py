"""The names of the fields that a prepared sample has in its WebDataset shard."""

TOKENS_FIELD = "tokens.npy"
CLASS_FIELD = "cls"
DOCUMENTS_FIELD = "documents.npy"
