"""Two ranks, one of which is asked to stop: their sums are made by hand."""

import pytest
import torch
from torch import nn

from nar_scale.evaluation import evaluate_likelihood
from nar_scale.training.fault_tolerance.interruption import interruptible, stopping_batches, stopping_calls
from nar_scale.training.fault_tolerance.preemption import StopAgreement
from tests.objectives.helpers import batch_of, random_tokens, small_ar


class Request:
    """Of this rank, which is never asked to stop."""

    deadline_begun = requested = False

    def __bool__(self):
        return self.requested

    def request(self):
        self.requested = True

    def begin_deadline(self):
        self.deadline_begun = True


class Others:
    """A world whose other rank is asked to stop before its `number`-th sum."""

    device = torch.device("cpu")

    def __init__(self, number):
        self.left = number

    def all_reduce(self, values):
        self.left -= 1
        return values + float(self.left <= 0)


@pytest.fixture
def request_of_rank():
    return Request()


@pytest.mark.parametrize(("number", "seen"), [(1, 1), (3, 3), (9, 5)])
def test_batches_end_one_after_the_request(request_of_rank, number, seen):
    stop, batches = StopAgreement(request_of_rank, Others(number)), []
    with interruptible():
        for batch in stopping_batches(stop, range(5)):
            batches.append(batch)
    assert batches == list(range(seen))
    assert stop.agreed == request_of_rank.deadline_begun == (seen < 5)
    assert not stop.requested  # it was another rank


def test_an_evaluation_that_ends_early_leaves_the_model_in_training(request_of_rank):
    model, stop = small_ar().train(), StopAgreement(request_of_rank, Others(2))
    with interruptible():
        evaluate_likelihood(model, stopping_batches(stop, [batch_of(random_tokens(2, 12))] * 5))
    assert stop.agreed
    assert model.training


def test_calls_end_and_the_net_is_left_as_it_was(request_of_rank):
    stop, net, calls = StopAgreement(request_of_rank, Others(2)), nn.Identity(), 0
    with interruptible(), stopping_calls(stop, net):
        for _ in range(5):
            net(torch.zeros(1))
            calls += 1
    assert calls == 2
    assert stop.agreed
    assert not net._forward_pre_hooks


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), interruptible():
        raise ZeroDivisionError


def test_a_rank_asks_by_itself(request_of_rank):
    stop = StopAgreement(request_of_rank, Others(99))
    assert stop.poll().read() == (0.0,)
    stop.request()
    assert stop.requested
    assert stop.poll().read() == (1.0,)
    assert not stop.agreed
