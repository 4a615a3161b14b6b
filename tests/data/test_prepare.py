import dataclasses
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nar_scale.data import ByteTokenizer, DatasetIndex, DatasetInfo, load_tokenizer, prepare
from nar_scale.data.npy import decode_npy
from nar_scale.errors import DataError, UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "corpus"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / ".git").mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        folder = [root, root / "sub", root / "sub" / "deep"][number % 3]
        (folder / f"{number:02d}.txt").write_bytes(rng.integers(1, 256, 37 * number + 1, dtype=np.uint8).tobytes())
    (root / ".hidden.txt").write_text("hidden")
    (root / ".git" / "config.txt").write_text("hidden")
    (root / "binary.txt").write_bytes(b"a\0b")
    (root / "empty.txt").write_bytes(b"")
    return root


def documents_of(corpus):
    files = [file for file in corpus.rglob("*.txt") if file.name[:2].isdigit()]
    return sorted(file.read_bytes() for file in files)


def tree(directory):
    """Digests of all files but the indices, which hold times."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.suffix != ".index")
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def split_tokens(output, split):
    index = DatasetIndex.open(output, f"{split}/shard-*.tar", progress=False)
    return [decode_npy(content) for content in index.read_many(np.arange(index.num_samples))]


def test_no_document_is_lost(corpus, tmp_path):
    output = tmp_path / "data"
    info = prepare([corpus], output, seq_len=64, validation=0.3, samples_per_shard=50, progress=False)
    assert info == DatasetInfo.load(output)
    assert info.skipped == {"hidden": 1, "binary": 1, "empty": 1}
    documents = []
    for split, sizes in info.splits.items():
        samples = split_tokens(output, split)
        assert {sample.dtype for sample in samples} == {np.dtype(np.uint16)}
        assert [len(sample) for sample in samples[:-1]] == [64] * (len(samples) - 1)
        tokens = np.concatenate(samples)
        ends = np.flatnonzero(tokens == 256)
        assert ends[-1] == len(tokens) - 1
        found = [bytes(part[part != 256].astype(np.uint8)) for part in np.split(tokens, ends + 1)[:-1]]
        assert sizes == dataclasses.replace(
            sizes,
            documents=len(found),
            samples=len(samples),
            tokens=len(tokens),
            bytes=sum(map(len, found)),
            shards=len(list((output / split).glob("*.tar"))),
        )
        documents += found
    assert sorted(documents) == documents_of(corpus)
    assert info.splits["train"].shards > 2
    assert info.splits["train"].tokens % 64 != 0  # the tail was tested


def test_output_is_the_same_for_any_number_of_workers(corpus, tmp_path):
    for workers in (1, 2):
        out = tmp_path / f"data{workers}"
        prepare([corpus], out, seq_len=64, validation=0.3, samples_per_shard=50, workers=workers, progress=False)
    assert tree(tmp_path / "data1") == tree(tmp_path / "data2")
    assert sorted(path.name for path in (tmp_path / "data1").iterdir()) == ["dataset.json", "train", "validation"]


def test_documents_stay_in_sorted_order(tmp_path):
    for name in ("b.txt", "a.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    prepare([tmp_path], tmp_path / "data", seq_len=8, validation=0, progress=False)
    text = ByteTokenizer().decode(np.concatenate(split_tokens(tmp_path / "data", "train")))
    assert text == "a.txt\n<|end|>\nb.txt\n<|end|>\nc.txt\n<|end|>\n"
    assert not (tmp_path / "data" / "validation").exists()


def test_split_depends_on_content_alone(corpus, tmp_path):
    first = prepare([corpus], tmp_path / "one", seq_len=64, validation=0.3, progress=False)
    (corpus / "copy").mkdir()
    for file in sorted(corpus.rglob("[0-9]*.txt")):
        (corpus / "copy" / f"z{file.name}").write_bytes(file.read_bytes())
    second = prepare([corpus], tmp_path / "two", seq_len=64, validation=0.3, progress=False)
    assert {name: 2 * sizes.documents for name, sizes in first.splits.items()} == {
        name: sizes.documents for name, sizes in second.splits.items()
    }


def test_include_and_exclude(tmp_path):
    for name in ("keep/a.py", "keep/b.md", "site-packages/c.py", "keep/x-cache/d.py", "e_test.py"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    arguments = {"seq_len": 8, "validation": 0, "include": "*.py", "exclude": ["site-packages", "*-cache", "*_test.py"]}
    prepare([tmp_path / "in"], tmp_path / "data", **arguments, progress=False)
    assert ByteTokenizer().decode(np.concatenate(split_tokens(tmp_path / "data", "train"))) == "keep/a.py\n<|end|>\n"
    prepare([tmp_path / "in" / "keep" / "b.md"], tmp_path / "named", **arguments, progress=False)
    assert ByteTokenizer().decode(np.concatenate(split_tokens(tmp_path / "named", "train"))) == "keep/b.md\n<|end|>\n"


def test_a_file_given_twice_and_the_output_itself_are_not_read_again(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    first = prepare([tmp_path, tmp_path / "a.txt"], tmp_path / "data", seq_len=8, validation=0, progress=False)
    again = prepare([tmp_path], tmp_path / "data", seq_len=8, validation=0, overwrite=True, progress=False)
    assert first == again
    assert first.splits["train"].documents == 1


def test_existing_data_is_replaced_only_when_asked(corpus, tmp_path):
    output = tmp_path / "data"
    prepare([corpus], output, seq_len=32, validation=0.3, samples_per_shard=10, progress=False)
    with pytest.raises(UserError, match=r"already holds a data set; .* --overwrite"):
        prepare([corpus], output, seq_len=64, progress=False)
    before = tree(output)
    with pytest.raises(DataError, match="does not exist"):
        prepare([tmp_path / "nowhere"], output, seq_len=64, overwrite=True, progress=False)
    assert tree(output) == before
    (output / "notes.txt").write_text("mine")
    prepare([corpus], output, seq_len=64, validation=0, overwrite=True, progress=False)
    prepare([corpus], tmp_path / "fresh", seq_len=64, validation=0, progress=False)
    assert tree(output) == {**tree(tmp_path / "fresh"), "notes.txt": hashlib.sha256(b"mine").hexdigest()}


def test_shards_without_dataset_json_are_not_mixed_in(corpus, tmp_path):
    output = tmp_path / "data"
    prepare([corpus], output, seq_len=32, validation=0, progress=False)
    (output / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"holds shards but no dataset\.json"):
        prepare([corpus], output, seq_len=32, progress=False)


def test_the_remains_of_a_killed_run_are_cleared(corpus, tmp_path):
    output = tmp_path / "data"
    (output / ".prepare-0123456789abcdef" / ".unit-000000-01234567" / "train").mkdir(parents=True)
    (output / ".prepare-0123456789abcdef" / ".unit-000000-01234567" / "train" / "shard-0000.tar").write_bytes(b"half")
    prepare([corpus], output, seq_len=32, validation=0, progress=False)
    prepare([corpus], tmp_path / "fresh", seq_len=32, validation=0, progress=False)
    assert tree(output) == tree(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seq_len": 1}, "seq_len is 1; give at least 2"),
        ({"validation": 1.0}, r"validation is 1\.0; give a fraction"),
        ({"validation": -0.1}, r"validation is -0\.1; give a fraction"),
        ({"samples_per_shard": 0}, "samples_per_shard is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"include": "*.nothing"}, "no file to read in .*corpus; check the paths and the include"),
        ({"include": "empty.txt"}, "no document in the inputs: all are empty or binary"),
        ({"validation": 1e-9}, "none of the 40 documents fell into the validation split"),
        ({"validation": 1 - 1e-9}, "all 40 documents fell into the validation split; lower"),
    ],
)
def test_wrong_arguments_are_named(corpus, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        prepare([corpus], tmp_path / "data", **{"seq_len": 64, "progress": False, **arguments})
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "data").exists()


def test_unwritable_output_is_named(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*file/data: Not a directory"):
        prepare([corpus], tmp_path / "file" / "data", seq_len=64, progress=False)


def test_hugging_face_tokenizer_is_kept_with_the_data(corpus, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "t.json"))
    (tmp_path / "a.txt").write_text("häuser")
    spec = str(tmp_path / "t.json")
    info = prepare([tmp_path / "a.txt"], tmp_path / "data", seq_len=4, tokenizer=spec, validation=0, progress=False)
    assert (info.tokenizer, info.vocabulary_size, info.end_token) == ("tokenizer.json", 257, 256)
    again = load_tokenizer(info.tokenizer, tmp_path / "data")
    assert again.decode(np.concatenate(split_tokens(tmp_path / "data", "train"))) == "häuser\n<|end|>\n"


def test_missing_or_damaged_dataset_json_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*dataset\.json: No such file.*launcher/prepare\.py"):
        DatasetInfo.load(tmp_path)
    for content in ("{", "[]", '{"splits": {}}', '{"splits": {"train": {"rows": 3}}}'):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(DataError, match=r"dataset\.json is damaged"):
            DatasetInfo.load(tmp_path)


def load_launcher():
    spec = importlib.util.spec_from_file_location("prepare_launcher", ROOT / "launcher" / "prepare.py")
    launcher = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launcher)
    return launcher


def test_launcher(corpus, tmp_path, capsys):
    launcher = load_launcher()
    arguments = ["--input", str(corpus), "--output", str(tmp_path / "data"), "--seq-len", "64", "--validation", "0.3"]
    assert launcher.main(arguments) == 0
    printed = capsys.readouterr()
    assert "train: " in printed.out
    assert "skipped: 1 hidden, 1 binary, 1 empty" in printed.out
    assert printed.err == ""
    assert launcher.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("prepare: error: ")
    assert printed.err.count("\n") == 1
    assert launcher.main([*arguments, "--overwrite"]) == 0


def test_importing_the_room_is_light():
    check = (
        "import sys, nar_scale.data; print([m for m in ('webdataset', 'deepspeed', 'tensorboard') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"
