"""Training a byte-pair tokenizer on a corpus."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from nar_scale.data.formats.documents import DEFAULT_TEXT_FIELD, Document
from nar_scale.data.formats.heads import head_fault
from nar_scale.data.formats.inputs import is_token_file, read_piece, split_into_pieces
from nar_scale.data.preparation.corpus import find_corpus, leave_out_faulty
from nar_scale.errors import DataError, UserError
from nar_scale.files import write_atomically
from nar_scale.progress import kept_at_interrupt, progress_bar

END_TOKEN = "<|endoftext|>"
MIN_VOCABULARY = 257  # the bytes and the end token
PIECE_BYTES = 1 << 24
MAX_TRAINING_BYTES = 1 << 30


def train_tokenizer(
    inputs: Sequence[Path],
    vocabulary_size: int,
    path: Path,
    *,
    text_field: str = DEFAULT_TEXT_FIELD,
    include: str = "*",
    exclude: Sequence[str] = (),
    as_text: Sequence[str] = (),
    max_bytes: int = MAX_TRAINING_BYTES,
    progress: bool = True,
) -> None:
    """Train a byte-level byte-pair encoding (Sennrich et al., arXiv:1508.07909) and write it as `tokenizer.json`.

    Args:
        inputs: files and folders, as for `prepare`.
        vocabulary_size: number of tokens, at least 257: the bytes and `<|endoftext|>`.
        path: the file to write.
        text_field: see `read_piece`.
        include: glob on the names of files in folders.
        exclude: globs on the parts of paths below a folder.
        as_text: globs on the names of files that are read as text, whatever they look like.
        max_bytes: bytes of input to train on, taken evenly from all inputs where there is more.
        progress: show a progress bar if stderr is a terminal.

    Raises:
        UserError: the vocabulary is too small, or the optional package `tokenizers` is not installed.
        DataError: there is no text, an input cannot be read, or the file cannot be written.
    """
    if vocabulary_size < MIN_VOCABULARY:
        raise UserError(f"a vocabulary of {vocabulary_size} is too small; give at least {MIN_VOCABULARY}")
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise UserError(
            "training a tokenizer needs an optional package: pip install 'nar_scale[tokenizers]'"
        ) from error
    corpus = find_corpus(inputs, include, exclude, [path], as_text)
    files = [file for file in corpus.files if not is_token_file(file) and file.resolve() != path.resolve()]
    pieces = [piece for file in files for piece in split_into_pieces(file, PIECE_BYTES, as_text)]
    firsts = {piece.file: piece for piece in reversed(pieces)}.values()
    faults = [fault for piece in firsts if (fault := head_fault(piece, text_field, as_text))]
    left_out = leave_out_faulty(corpus, faults)
    pieces = [piece for piece in pieces if piece.file not in left_out]
    available = sum(piece.size for piece in pieces)
    stride = max(-(-available // max_bytes), 1)

    def texts() -> Iterator[str]:
        with progress_bar("read", available // stride, "B", progress) as bar:
            for piece in pieces[::stride]:
                for document in read_piece(piece, text_field, as_text):
                    bar.update(document.size)
                    if isinstance(document, Document) and document.text is not None:
                        yield document.text.decode("utf-8", errors="replace")

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=[END_TOKEN], initial_alphabet=alphabet, show_progress=False
    )
    with kept_at_interrupt(f"{path} was not written"):
        tokenizer.train_from_iterator(texts(), trainer)
    if tokenizer.get_vocab_size() <= MIN_VOCABULARY < vocabulary_size:
        raise DataError(f"no text to train on in {', '.join(map(str, inputs))}; give text, not tokens or binary files")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, tokenizer.to_str(pretty=True).encode("utf-8"))
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose a writable directory") from error
