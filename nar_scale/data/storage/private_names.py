"""The private names of fsspec, s3fs and gcsfs that `object_stores` uses, with the versions they were checked against.

Each entry is a class by its dotted name, and its attributes. A test fails with those that an installed version lacks,
and with private names in the code that are not listed. Before another version is adopted, compare the uses in
`object_stores` with its source.
"""

FSSPEC_VERSION = "2026.9.0"

FSSPEC: dict[str, tuple[str, ...]] = {
    # lists objects: the documented coroutine behind `glob`, which itself runs in a thread that never ends
    "fsspec.asyn.AsyncFileSystem": ("_glob",),
}

S3FS_VERSION = "2026.9.0"

S3FS: dict[str, tuple[str, ...]] = {
    # reads an object in one request, with the arguments that the file system was given: the public `open_async`
    # ignores versions, and `open` asks for one range after the other
    "s3fs.core.S3FileSystem": ("_call_s3",),
}

GCSFS_VERSION = "2026.10.1"

GCSFS: dict[str, tuple[str, ...]] = {
    # open the session, and say who pays for a request: no public coroutine of gcsfs reads an object in one request
    "gcsfs.core.GCSFileSystem": ("_set_session", "_get_params"),
}
