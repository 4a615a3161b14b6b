import math

import pytest

from nar_scale.errors import UserError
from nar_scale.evaluation import Likelihood, pool_likelihoods
from nar_scale.evaluation.likelihood import MeanLoss
from tests.errors import refused

NAME = "masked_0.0_to_0.2"


def test_sources_are_pooled_by_their_tokens():
    code = Likelihood(1.0, 0.01, 300, 3, "bound", 1.0, "NELBO", {NAME: MeanLoss(2.0, 10)})
    prose = Likelihood(2.0, 0.04, 100, 1, "bound", 4.0, "NELBO", {NAME: MeanLoss(4.0, 30)})
    pooled = pool_likelihoods({"code": code, "prose": prose})
    assert pooled.nats_per_token == pytest.approx(1.25)
    assert pooled.standard_error == pytest.approx(math.hypot(3, 4) / 400)
    assert (pooled.tokens, pooled.sequences, pooled.kind, pooled.estimator) == (400, 4, "bound", "NELBO")
    assert pooled.bits_per_byte == pytest.approx(500 / math.log(2) / 700)
    assert pooled.by_masked_fraction == {NAME: MeanLoss(3.5, 40)}


def test_one_source_is_itself():
    one = Likelihood(1.5, 0.25, 10, 2, "exact", None, "exact NLL")
    assert pool_likelihoods({"": one}) == one


def test_what_cannot_be_pooled_is_refused():
    with refused(UserError, "source"):
        pool_likelihoods({})
    with refused(UserError, "code", "prose", "estimators"):
        pool_likelihoods(
            {"code": Likelihood(1, 0, 1, 1, "exact"), "prose": Likelihood(1, 0, 1, 1, "bound", None, "NELBO")}
        )
