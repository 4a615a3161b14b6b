import pytest


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """One directory for all examples of a module, which is quicker than one for each."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def no_waiting():
    """Nothing waits for file systems to come back, nor for disks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nar_scale.data.shards.shard_reader.RETRY_WAITS", ())
        patch.setattr("os.fsync", lambda descriptor: None)
        yield
