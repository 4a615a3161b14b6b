"""A small corpus, and what can be said of a prepared data set from outside."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np

from nar_scale.data import DatasetIndex, DatasetInfo, SampleFormat
from nar_scale.data.tokenizers import ByteTokenizer


def write_corpus(root: Path) -> list[bytes]:
    """Text files in folders and lines of JSON, some longer than a unit of 2,000 bytes and some twice; all documents."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"abcdefghij klmnop\n", dtype=np.uint8)
    documents = [
        rng.choice(letters, int(length)).tobytes() for length in [1, 5000, 2, 64, 63, *rng.integers(1, 700, 55)]
    ]
    documents += documents[10:15]
    (root / "sub" / "deep").mkdir(parents=True)
    for number, document in enumerate(documents[:30]):
        folder = [root, root / "sub", root / "sub" / "deep"][number % 3]
        (folder / f"{number:02d}.txt").write_bytes(document)
    lines = [json.dumps({"text": document.decode()}) for document in documents[30:]]
    (root / "lines.jsonl").write_text("\n".join(lines) + "\n")
    (root / ".hidden.txt").write_text("hidden")
    (root / "binary.txt").write_bytes(b"a\0b")
    (root / "empty.txt").write_bytes(b"")
    return documents


def tree(directory: Path) -> dict[str, str]:
    """The digest of every file but the index of shards and `.prepared`, which hold times of writing."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.suffix != ".index")
    files = [path for path in files if path != directory / ".prepared"]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_split(output: Path, split: str) -> list:
    """All samples of a split, checked."""
    info = DatasetInfo.load(output)
    sample_format = SampleFormat(
        info.seq_len,
        info.vocabulary_size,
        class_field=None if info.num_classes is None else "cls",
        num_classes=info.num_classes,
        document_field=info.document_field,
    )
    index = DatasetIndex.open(output, f"{split}/shard-*.tar", sample_format.fields, progress=False)
    return [sample_format.read(index, number) for number in range(index.num_samples)]


def read_documents(output: Path, split: str) -> list[bytes]:
    """The documents of a split in order, out of bytes as tokens."""
    tokens = np.concatenate([sample.tokens for sample in read_split(output, split)])
    ends = np.flatnonzero(tokens == ByteTokenizer.end_token)
    assert ends[-1] == len(tokens) - 1
    return [part[:-1].astype(np.uint8).tobytes() for part in np.split(tokens, ends + 1)[:-1]]


def count_documents(output: Path) -> Counter:
    """How often each document is in a data set."""
    return Counter(document for split in DatasetInfo.load(output).splits for document in read_documents(output, split))


def check_whole(output: Path) -> None:
    """Assert that `dataset.json`, if it is there, describes exactly the shards that are there."""
    if not (output / "dataset.json").exists():
        return
    info = DatasetInfo.load(output)
    for split in ("train", "validation"):
        shards = sorted(path.name for path in (output / split).glob("*.tar"))
        sizes = info.splits.get(split)
        assert shards == [f"shard-{number:06d}.tar" for number in range(sizes.shards if sizes else 0)]
        if sizes:
            samples = read_split(output, split)
            assert (sizes.samples, sizes.tokens) == (len(samples), sum(len(sample.tokens) for sample in samples))
