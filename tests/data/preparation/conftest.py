import pytest

from nar_scale.data import prepare
from tests.data.corpora import write_corpus
from tests.data.preparation.preparing import SETTINGS


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.fixture(scope="module")
def shared_corpus(tmp_path_factory):
    """A corpus for all tests of a module, which do not change it."""
    root = tmp_path_factory.mktemp("parts") / "corpus"
    write_corpus(root)
    return root


@pytest.fixture(scope="module")
def unbroken(shared_corpus):
    """The data set of the shared corpus as one process makes it without interruption."""
    output = shared_corpus.parent / "unbroken"
    prepare([shared_corpus], output, **SETTINGS, workers=1, progress=False)
    return output
