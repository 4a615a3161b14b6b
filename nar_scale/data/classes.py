"""The class of each sample, read from a field of its own."""

import numpy as np

from nar_scale.data.index import DatasetIndex
from nar_scale.data.npy import decode_npy
from nar_scale.errors import DataError


class ClassReader:
    """Reads classes by sample number.

    Args:
        index: the field that holds the classes: integers as text (WebDataset's `cls`) or, where its name ends in
            `npy`, as arrays of one element.
        num_classes: every class must be below it.
    """

    def __init__(self, index: DatasetIndex, num_classes: int):
        self.index = index
        self.num_classes = num_classes

    def read(self, sample_ids: np.ndarray) -> np.ndarray:
        """Return the classes of some samples.

        Args:
            sample_ids: int64 [n].

        Returns:
            int64 [n], each in [0, num_classes).

        Raises:
            DataError: naming shard, key and reason, if a class cannot be read, is no integer or out of range.
        """
        contents = self.index.read_bytes(sample_ids)
        return np.array([self._class(*sample) for sample in zip(sample_ids, contents)], dtype=np.int64)

    def _class(self, sample_id: int, content: bytes) -> int:
        try:
            number = _parse_npy(content) if self.index.field.endswith("npy") else int(content)
        except ValueError as error:
            raise DataError(
                f"{self.index.name(sample_id)}: field {self.index.field!r} is not an integer ({error}); name another "
                "data.class_field or write the shard again"
            ) from None
        if not 0 <= number < self.num_classes:
            raise DataError(
                f"{self.index.name(sample_id)}: class {number} is outside 0..{self.num_classes - 1}; raise "
                "objective.num_classes or write the shard again"
            )
        return number


def _parse_npy(content: bytes) -> int:
    array = decode_npy(content)
    if array.dtype.kind not in "iu" or array.size != 1:
        raise ValueError(f"it is {array.dtype} of shape {array.shape}")
    return int(array.item())
