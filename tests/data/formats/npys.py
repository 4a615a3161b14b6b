"""Arrays of many dtypes, shapes and versions as `.npy` files."""

import numpy as np

from tests.data.shard_files import npy

NPYS = [npy(np.arange(24).reshape(2, 3, 4).astype(kind)) for kind in ("<i4", ">i2", "u1", "f8", "U4", "S3", "b1")]
NPYS += [npy(np.asfortranarray(np.arange(6).reshape(2, 3)), version) for version in ((1, 0), (2, 0), (3, 0))]
NPYS += [
    npy(np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")])),
    npy(np.array("2020-01-01", "M8[D]")),
    npy(np.zeros(0, int)),
]
