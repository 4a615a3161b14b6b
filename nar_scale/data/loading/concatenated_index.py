"""Several data sets as one, their samples numbered through."""

from collections.abc import Mapping
from hashlib import blake2b

import numpy as np

from nar_scale.data.shards.dataset_index import DatasetIndex, group_equal


class ConcatenatedIndex:
    """The samples of several named data sets, numbered through, data set after data set.

    Attributes:
        names: of the data sets.
        indexes: of the data sets.
        num_samples: samples in all.
        fingerprint: hex digest of the names and fingerprints of the data sets.
    """

    def __init__(self, indexes: Mapping[str, DatasetIndex]):
        self.names, self.indexes = list(indexes), list(indexes.values())
        counts = np.array([index.num_samples for index in self.indexes], dtype=np.int64)
        self.num_samples = int(counts.sum())
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        described = "".join(f"{name}\0{index.fingerprint}\n" for name, index in indexes.items())
        self.fingerprint = blake2b(described.encode(), digest_size=16).hexdigest()

    def read(self, sample_id: int, field: str) -> bytes:
        """Return a field of a sample as it is stored; errors as in `DatasetIndex.read`."""
        source, own_id = self._locate(sample_id)
        return self.indexes[source].read(own_id, field)

    def read_many(self, sample_ids: np.ndarray, field: str) -> list[bytes]:
        """Return a field of several samples, int64 `[n]`, at once; errors as in `DatasetIndex.read`."""
        sources = np.searchsorted(self._ends, sample_ids, side="right")
        contents = [b""] * len(sample_ids)
        for chosen in group_equal(sources):
            source = int(sources[chosen[0]])
            read = self.indexes[source].read_many(sample_ids[chosen] - self._starts[source], field)
            for position, content in zip(chosen.tolist(), read):
                contents[position] = content
        return contents

    def prefetch(self, sample_ids: np.ndarray) -> None:
        """Start to fetch the remote shards of samples, int64 `[n]`, that will be read soon."""
        sources = np.searchsorted(self._ends, sample_ids, side="right")
        for chosen in group_equal(sources):
            source = int(sources[chosen[0]])
            self.indexes[source].prefetch(sample_ids[chosen] - self._starts[source])

    def name(self, sample_id: int) -> str:
        """Return "source NAME, shard PATH, sample KEY" for messages."""
        source, own_id = self._locate(sample_id)
        return f"source {self.names[source]}, {self.indexes[source].name(own_id)}"

    def _locate(self, sample_id: int) -> tuple[int, int]:
        """Return the data set of a sample and its id there."""
        source = int(np.searchsorted(self._ends, sample_id, side="right"))
        return source, int(sample_id - self._starts[source])
