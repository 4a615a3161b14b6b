import pytest
import torch

from nar_scale.checkpoint import load_consolidated
from nar_scale.errors import UserError
from nar_scale.model.devices import find_device
from tests.errors import refused


def test_a_device_that_is_there_is_found():
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")
    assert find_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cpu:x", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(tmp_path, name):
    with refused(UserError, repr(name), "cpu"):
        find_device(name)
    with refused(UserError, repr(name), "cpu"):
        load_consolidated(tmp_path, name)
