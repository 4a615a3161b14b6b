import numpy as np
import pytest

from nar_scale.data.formats.inputs import split_into_pieces
from tests.data.formats.reading import assert_refused, read, tokens


@pytest.mark.parametrize("content", ["tokens", "images", "x"])
@pytest.mark.parametrize("labels", ["labels", "y", "cls"])
@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_archives_with_labels(tmp_path, content, labels, savez):
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    savez(tmp_path / "a.npz", **{labels: np.array([2, 0, 1]), content: images})
    assert len(split_into_pieces(tmp_path / "a.npz", 1)) == 1
    sources = read(tmp_path / "a.npz")
    assert tokens(sources) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [source.label for source in sources] == [2, 0, 1]
    assert all(type(source.label) is int for source in sources)
    assert sum(source.size for source in sources) == (tmp_path / "a.npz").stat().st_size


def test_archives_of_one_array(tmp_path):
    np.savez(tmp_path / "a.npz", whatever=np.arange(4))
    assert tokens(read(tmp_path / "a.npz")) == [[0, 1, 2, 3]]
    np.savez(tmp_path / "a.npz", np.arange(4).reshape(2, 2))
    assert tokens(read(tmp_path / "a.npz")) == [[0, 1], [2, 3]]
    assert [source.label for source in read(tmp_path / "a.npz")] == [None, None]


@pytest.mark.parametrize(
    "names", [("a", "b"), ("x", "tokens"), ("x_train", "y_train"), ("x", "y", "cls"), ("x", "y", "mask"), ("y", "cls")]
)
def test_ambiguous_archives_are_refused(tmp_path, names):
    np.savez(tmp_path / "a.npz", **{name: np.arange(4) for name in names})
    assert_refused(tmp_path / "a.npz", ", ".join(map(repr, names)))


def test_an_archive_of_nothing_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz")
    assert_refused(tmp_path / "a.npz", "holds the arrays nothing")


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, -1], [0.0, 1.0, 2.0], [[0], [1], [2]]])
def test_wrong_labels_are_refused(tmp_path, labels):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2), int), y=np.array(labels))
    assert_refused(tmp_path / "a.npz", "array 'y'", "each of the 3 rows")
