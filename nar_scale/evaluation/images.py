"""Token sequences as images: the tokens are grey levels, row by row."""

from __future__ import annotations

import io

import numpy as np

PAPER = 255
SEPARATOR = 160


def image_grid(
    tokens: np.ndarray, shape: tuple[int, int], levels: int, columns: int = 10, scale: int = 4
) -> np.ndarray:
    """Draw sequences as images, `columns` in a row, with a line of one pixel around each.

    Args:
        tokens: integers [count, height * width] in [0, levels); 0 is drawn white, `levels - 1` black.
        shape: height and width of an image, in tokens.
        levels: number of grey levels.
        columns: images in a row; fewer where there are fewer images.
        scale: pixels along the side of a token.

    Returns:
        uint8 [rows * (height * scale + 1) + 1, columns * (width * scale + 1) + 1].

    Raises:
        ValueError: no images, or tokens of another length or out of range.
    """
    height, width = shape
    if tokens.ndim != 2 or len(tokens) == 0 or tokens.shape[1] != height * width:
        raise ValueError(f"tokens of shape {tokens.shape} are not images of {height} x {width}")
    if tokens.min() < 0 or tokens.max() >= levels:
        raise ValueError(f"a token is outside the {levels} grey levels")
    columns = min(columns, len(tokens))
    rows = -(-len(tokens) // columns)
    ink = tokens.reshape(-1, height, width).astype(np.int64) * PAPER // max(levels - 1, 1)
    cells = np.full((rows * columns, height * scale + 1, width * scale + 1), SEPARATOR, dtype=np.uint8)
    cells[:, 1:, 1:] = PAPER  # where the last row is not full
    cells[: len(ink), 1:, 1:] = (PAPER - ink).repeat(scale, axis=1).repeat(scale, axis=2)
    table = cells.reshape(rows, columns, *cells.shape[1:]).transpose(0, 2, 1, 3)
    grid = table.reshape(rows * cells.shape[1], columns * cells.shape[2])
    return np.pad(grid, ((0, 1), (0, 1)), constant_values=SEPARATOR)


def encode_png(image: np.ndarray) -> bytes:
    """The bytes of a PNG file of a grey image, uint8 [height, width]."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()
