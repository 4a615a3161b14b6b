"""What is kept of a draft has the target's distribution, whatever was drafted."""

import pytest
import torch

from nar_scale.decoding.filters import sample, top_k
from nar_scale.decoding.speculative import VerificationNoise, propose, verify
from tests.masking.helpers import chi_square_excess, requests

ROWS, DRAFTED, TOKENS = 40_000, 2, 3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def noise_of(rows, width, seed=0):
    noise = requests(rows, seed)
    return VerificationNoise(noise.derive(1).uniform(width + 1), noise.derive(2).uniform(width))


class Joint:
    """Tables of two models of three tokens: the target's, and a draft's that proposes two."""

    def __init__(self, likeness: float):
        self.target = [normal(1, TOKENS, seed=1), normal(3, TOKENS, seed=2), normal(9, TOKENS, seed=3)]
        other = [normal(1, TOKENS, seed=4), normal(3, TOKENS, seed=5)]
        self.draft = [likeness * ours + (1 - likeness) * 2 * theirs for ours, theirs in zip(self.target, other)]

    def probabilities(self, temperature):
        """Of all 27 sequences, float64 `[27]`."""
        tables = [(table.double() / temperature).softmax(dim=-1) for table in self.target]
        return (tables[0].view(3, 1, 1) * tables[1].view(3, 3, 1) * tables[2].view(3, 3, 3)).flatten()

    def propose(self, rows, temperature):
        """Tokens that are drafted one after another, with their distributions."""
        uniform = requests(rows, 7).uniform(DRAFTED)
        first, of_first = propose(self.draft[0].expand(rows, -1), temperature, uniform[:, 0])
        second, of_second = propose(self.draft[1][first], temperature, uniform[:, 1])
        return torch.stack((first, second), dim=1), torch.stack((of_first, of_second), dim=1)

    def logits(self, drafted):
        first, second = drafted.unbind(dim=1)
        return torch.stack(
            (self.target[0].expand(len(drafted), -1), self.target[1][first], self.target[2][3 * first + second]), 1
        )


def completed(joint, verified, temperature):
    """Sequences of three tokens: what is kept, and what the target draws after it. int64 `[rows, 3]`."""
    tokens, uniform = verified.tokens.clone(), requests(len(verified.tokens), 8).uniform(3)
    for place in (1, 2):
        before = tokens[:, 0] if place == 1 else 3 * tokens[:, 0] + tokens[:, 1]
        drawn = sample(joint.target[place][before], temperature, uniform[:, place])
        tokens[:, place] = torch.where(tokens[:, place] < 0, drawn, tokens[:, place])
    return tokens


@pytest.mark.parametrize("likeness", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("temperature", "of_draft"), [(1.0, 1.0), (0.6, 1.5), (1.3, 0.0)])
def test_the_joint_of_the_target_comes_out(likeness, temperature, of_draft):
    joint = Joint(likeness)
    drafted, proposals = joint.propose(ROWS, of_draft)
    verified = verify(drafted, joint.logits(drafted), temperature, noise_of(ROWS, DRAFTED), proposals=proposals)
    drawn = completed(joint, verified, temperature)
    excess = chi_square_excess((drawn * torch.tensor([9, 3, 1])).sum(dim=1), joint.probabilities(temperature))
    assert excess < 5
    assert set(verified.accepted.tolist()) == ({2} if (likeness, of_draft) == (1.0, temperature) else {0, 1, 2})


def test_what_the_draft_never_proposes_comes_out_too():
    joint = Joint(1.0)
    joint.draft = [top_k(table, k=1) for table in joint.draft]
    drafted, proposals = joint.propose(ROWS, 1.0)
    verified = verify(drafted, joint.logits(drafted), 1.0, noise_of(ROWS, DRAFTED), proposals=proposals)
    drawn = completed(joint, verified, 1.0)
    assert chi_square_excess((drawn * torch.tensor([9, 3, 1])).sum(dim=1), joint.probabilities(1.0)) < 5


def test_as_many_are_kept_as_both_distributions_share():
    joint = Joint(0.5)
    drafted, proposals = joint.propose(ROWS, 1.0)
    verified = verify(drafted, joint.logits(drafted), 1.0, noise_of(ROWS, DRAFTED), proposals=proposals)
    shared = torch.minimum(joint.target[0][0].double().softmax(-1), proposals[0, 0]).sum()
    kept = (verified.accepted > 0).double().mean()
    assert abs(kept - shared) < 5 * (shared * (1 - shared) / ROWS) ** 0.5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_that_were_not_drawn_change_nothing(temperature):
    """Those of a lookup: the result is what the target alone draws with the same numbers."""
    logits, drafted, noise = normal(500, 4, 5), torch.randint(5, (500, 3)), noise_of(500, 3)
    alone = sample(logits, temperature, noise.draw)
    verified = verify(drafted, logits, temperature, noise)
    for ours, count, expected, given in zip(verified.tokens, verified.accepted.tolist(), alone, drafted):
        assert torch.equal(ours[: count + 1], expected[: count + 1])
        assert torch.equal(ours[:count], given[:count])
        assert (ours[count + 1 :] == -1).all()
        assert count == 3 or expected[count] != given[count]
    assert set(verified.accepted.tolist()) == {0, 1, 2, 3}


def test_at_temperature_0_a_draft_changes_nothing():
    logits, noise = normal(500, 4, 5), noise_of(500, 3)
    drafted, proposals = propose(logits[:, :3] + normal(500, 3, 5, seed=1), 1.0, requests(500, 3).uniform(3))
    verified = verify(drafted, logits, 0.0, noise, proposals=proposals)
    for ours, count, expected in zip(verified.tokens, verified.accepted.tolist(), logits.argmax(dim=-1)):
        assert torch.equal(ours[: count + 1], expected[: count + 1])


@pytest.mark.parametrize("drawn", [True, False])
def test_rows_have_drafts_of_their_own_lengths(drawn):
    """A row with a shorter draft is as if it alone stood there."""
    logits, noise = 3 * normal(200, 4, 5), noise_of(200, 3)
    drafted, proposals = propose(logits[:, :3] + normal(200, 3, 5, seed=1), 1.0, requests(200, 3).uniform(3))
    counts = torch.arange(200) % 4
    together = verify(drafted, logits, 1.0, noise, proposals=proposals if drawn else None, counts=counts)
    for row, count in enumerate(counts.tolist()):
        rows = slice(row, row + 1)
        own = VerificationNoise(noise.draw[rows, : count + 1], noise.accept[rows, :count])
        alone = verify(
            drafted[rows, :count],
            logits[rows, : count + 1],
            1.0,
            own,
            proposals=proposals[rows, :count] if drawn else None,
        )
        assert together.accepted[row] == alone.accepted[0]
        assert torch.equal(together.tokens[row, : count + 1], alone.tokens[0])
    assert {0, 1, 2, 3} == set(together.accepted.tolist())


def test_what_is_filtered_out_is_never_kept():
    logits, noise = top_k(normal(2000, 3, 6), k=2), noise_of(2000, 2)
    drafted, proposals = propose(normal(2000, 2, 6, seed=1), 1.0, requests(2000, 3).uniform(2))
    verified = verify(drafted, logits, 1.0, noise, proposals=proposals)
    there = verified.tokens >= 0
    kept = logits.gather(2, verified.tokens.clamp(min=0)[..., None])[..., 0]
    assert kept[there].isfinite().all()


def test_the_same_distribution_refuses_nothing():
    logits = normal(5000, 3, 8) * 20  # with probabilities down to 1e-40
    drafted, proposals = propose(logits[:, :2], 1.0, requests(5000, 3).uniform(2))
    verified = verify(drafted, logits, 1.0, noise_of(5000, 2), proposals=proposals)
    assert (verified.accepted == 2).all()
