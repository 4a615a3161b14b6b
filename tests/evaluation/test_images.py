import io

import numpy as np
import pytest
from PIL import Image

from nar_scale.evaluation import encode_png, image_grid
from nar_scale.evaluation.images import PAPER, SEPARATOR
from tests.errors import refused


def test_every_image_is_in_its_place():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 17, size=(5, 6))
    grid = image_grid(tokens, (2, 3), 17, columns=3, scale=4)
    assert grid.dtype == np.uint8
    assert grid.shape == (2 * (2 * 4 + 1) + 1, 3 * (3 * 4 + 1) + 1)
    assert (grid[::9] == SEPARATOR).all()
    assert (grid[:, ::13] == SEPARATOR).all()
    for number, image in enumerate(tokens.reshape(5, 2, 3)):
        top, left = number // 3 * 9 + 1, number % 3 * 13 + 1
        drawn = grid[top : top + 8, left : left + 12].reshape(2, 4, 3, 4)
        assert np.array_equal(drawn, np.broadcast_to((PAPER - image * PAPER // 16)[:, None, :, None], (2, 4, 3, 4)))
    assert (grid[10:18, 27:39] == PAPER).all()  # the place that is left over


def test_ink_is_black_and_paper_white():
    assert image_grid(np.array([[0, 16]]), (1, 2), 17, scale=1).tolist()[1] == [SEPARATOR, 255, 0, SEPARATOR]


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        (np.zeros((1, 5), int), [(1, 5), "2 x 3"]),
        (np.zeros((0, 6), int), [(0, 6), "2 x 3"]),
        (np.full((1, 6), 17), [17]),
        (np.full((1, 6), -1), [17]),
    ],
)
def test_what_is_no_image_is_refused(tokens, named):
    with refused(ValueError, *named):
        image_grid(tokens, (2, 3), 17)


def test_png():
    grid = image_grid(np.arange(12).reshape(2, 6), (2, 3), 17)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(grid)))), grid)
