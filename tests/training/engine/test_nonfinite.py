import pytest
import torch

from nar_scale.training.engine.nonfinite import all_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_one_element_that_is_not_finite_is_seen(dtype, bad, place):
    largest = torch.finfo(dtype).max
    tensors = [torch.tensor(1.0), torch.zeros(0), torch.full((10, 100), largest, dtype=dtype), -torch.ones(3)]
    assert all_finite(tensors)
    tensors[2].view(-1)[place] = bad
    assert not all_finite(tensors)


def test_nothing_is_finite():
    assert all_finite([])
    assert all_finite([torch.zeros(0)])
    assert not all_finite([torch.zeros(0), torch.tensor(float("nan"))])
