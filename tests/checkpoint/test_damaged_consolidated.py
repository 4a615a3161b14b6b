"""An exported directory in which anything is damaged is refused in one line, whoever reads it."""

import os
import random
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from nar_scale.checkpoint import ConsolidatedWeights, load_consolidated
from nar_scale.errors import CheckpointError, UserError
from tests.checkpoint.test_consolidated import exported_with_average
from tests.errors import assert_names, refused

_NUMBER = re.compile(rb"\b(?:\d+|true|false|null)\b")
_JUNK = (b"-1", b"0", b"1e999", b'"x"', b"null", b"99999999999", b"[]", b"\xff", b"[" * 9999)


def truncated(path, dice):
    path.write_bytes(path.read_bytes()[: dice.randrange(path.stat().st_size)])


def flipped(path, dice):
    content = bytearray(path.read_bytes())
    for _ in range(dice.choice((1, 1, 3))):
        place = dice.randrange(min(len(content), 500))  # the headers of weights, rather than the weights
        content[place] ^= dice.randrange(1, 256)
    path.write_bytes(content)


def without_a_line(path, dice):
    lines = path.read_bytes().split(b"\n")
    del lines[dice.randrange(len(lines))]
    path.write_bytes(b"\n".join(lines))


def with_another_value(path, dice):
    content = path.read_bytes()
    value = dice.choice(list(_NUMBER.finditer(content)) or [re.match(b"", content)])
    path.write_bytes(content[: value.start()] + dice.choice(_JUNK) + content[value.end() :])


def emptied(path, dice):
    path.write_bytes(b"")


def missing(path, dice):
    path.unlink()


def a_directory(path, dice):
    path.unlink()
    path.mkdir()


def a_loop(path, dice):
    path.unlink()
    path.symlink_to(path)


OFTEN, ONCE = (truncated, flipped, without_a_line, with_another_value), (emptied, missing, a_directory, a_loop)


def problem_of(reader, directory):
    try:
        reader(directory)
    except UserError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported") / "model"
    exported_with_average(directory, shard_bytes=10_000)
    return directory


def test_a_damaged_directory_is_refused_in_one_line_or_loaded(whole, tmp_path):
    files = sorted(path.name for path in whole.iterdir())
    readers = {
        "verified": load_consolidated,
        "average": lambda path: load_consolidated(path, weights="ema"),
        "not verified": lambda path: load_consolidated(path, verify=False),
        "to start from": ConsolidatedWeights,
    }
    refusals = dict.fromkeys(readers, 0)
    for name in files:
        for damage in [*ONCE, *OFTEN * (12 if name.endswith(("json", "yaml")) else 2)]:
            directory = tmp_path / f"{name}-{damage.__name__}"
            shutil.copytree(whole, directory)
            damage(directory / name, random.Random(f"{name} {sum(refusals.values())}"))
            changed = not (directory / name).is_file() or (directory / name).read_bytes() != (whole / name).read_bytes()
            for reader, open_it in readers.items():
                problem = problem_of(open_it, directory)
                if problem is not None:
                    assert_names(problem, directory)
                    refusals[reader] += 1
                else:
                    harmless = not changed or name == "manifest.json"  # formatting of the manifest
                    assert harmless or reader in ("not verified", "to start from"), (name, damage.__name__, reader)
            shutil.rmtree(directory)
    assert len(files) > 8
    assert min(refusals.values()) > 60


@contextmanager
def as_nobody():
    """A `with` block without the rights of root, which may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["", "model.json", "manifest.json", "config.yaml", "model.safetensors.index.json"])
def test_what_may_not_be_read_is_named(whole, name):
    parent = Path(tempfile.mkdtemp())  # unlike tmp_path, one that others may enter
    try:
        parent.chmod(0o755)
        shutil.copytree(whole, parent / "model")
        for path in (parent / "model").iterdir():
            path.chmod(0o644)
        (parent / "model" / name).chmod(0)
        with as_nobody(), refused(CheckpointError, parent / "model" / name, "Permission denied"):
            load_consolidated(parent / "model")
    finally:
        (parent / "model").chmod(0o755)
        shutil.rmtree(parent)


def test_a_model_that_is_too_large_is_refused(whole, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(whole, directory)
    info = directory / "model.json"
    for size, named in ((0, [info, "vocabulary_size"]), (10**14, [directory, "memory", "cpu"])):
        info.write_bytes(re.sub(rb'("vocabulary_size": )\d+', rb"\g<1>%d" % size, info.read_bytes()))
        with refused(CheckpointError, *named):
            load_consolidated(directory, verify=False)
