"""Networks for decoding that look their answers up in a table, and joint distributions known in full."""

from collections.abc import Callable
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from nar_scale.config import SAMPLERS
from nar_scale.decoding import Filters, Unmasked, make_sampler, unmask
from nar_scale.masking import Noise, get_schedule
from tests.masking.helpers import requests
from tests.model.helpers import TableNet


class TableNetwork:
    """A `TableNet` as decoding asks for it; its embeddings are its logits.

    Attributes:
        seen: the tokens of each call.
    """

    shrinks = True

    def __init__(self, net: TableNet, mask_id: int, critic: Any = None):
        self.net, self.mask_id, self.critic, self.num_tokens = net, mask_id, critic, net.num_tokens
        self.seen: list[Tensor] = []

    def embed(self, tokens: Tensor, shadows: bool = False) -> Tensor:
        self.seen.append(tokens)
        logits = self.net(tokens)
        if not shadows:
            return logits
        hidden = torch.eye(tokens.shape[1], dtype=torch.bool)
        alone = [self.net(tokens.masked_fill(place, self.mask_id))[:, i : i + 1] for i, place in enumerate(hidden)]
        return torch.cat((logits, *alone), dim=1)

    def read(self, embeddings: Tensor, reduce: Callable[..., Tensor], *per_row: Tensor) -> Tensor:
        return reduce(embeddings.clone(), *per_row)

    def judge(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.critic(tokens))

    def select(self, rows: Tensor) -> None:
        pass


def settings(sampler: str, **options: Any) -> Any:
    """The settings of a sampler."""
    return SAMPLERS[sampler].model_validate({"sampler": sampler, **options})


def decode(
    tokens: Tensor,
    net: TableNet,
    mask_id: int,
    sampler: str,
    *,
    noise: Noise | None = None,
    schedule: Any = "linear",
    critic: Any = None,
    can_mask_revealed: bool = False,
    critic_noise: float = 1.0,
    callback: Any = None,
    **options: Any,
) -> tuple[Unmasked, list[Tensor]]:
    """Unmask with a table, and return what it saw at each call besides the result."""
    config = settings(sampler, **options)
    network = TableNetwork(net, mask_id, critic)
    policy = make_sampler(
        config,
        get_schedule(schedule),
        critic=critic is not None,
        critic_noise=critic_noise,
        can_mask_revealed=can_mask_revealed,
    )
    result = unmask(
        network,
        tokens,
        policy,
        Filters(mask_id, config.top_k, config.top_p),
        noise or requests(len(tokens)),
        temperature=config.temperature,
        callback=callback,
    )
    return result, network.seen


def some_joint(n: int, answers: int = 3, seed: int = 0) -> Tensor:
    """A joint distribution of `n` tokens that depend on each other, float64 `[answers, ...]`."""
    joint = torch.rand(*[answers] * n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) ** 2
    return joint / joint.sum()


def oracle(joint: Tensor) -> TableNet:
    """A net that holds the exact conditionals p(token | visible tokens) of a joint distribution `[3, 3]` and so on.

    The mask is the token after the last answer; visible tokens are asked about as if they were masked.
    """
    n, answers = joint.ndim, joint.shape[0]
    net = TableNet(n, answers + 1)
    for visible in product(range(answers + 1), repeat=n):
        given = tuple(slice(None) if token == answers else slice(token, token + 1) for token in visible)
        for place in range(n):
            others = [axis for axis in range(n) if axis != place]
            conditional = joint[given].sum(dim=others) if others else joint[given]
            if visible[place] == answers:
                net.table.data[net.code(torch.tensor(visible)), place, :answers] = conditional.log().float()
    return net


def outcomes(tokens: Tensor, answers: int = 3) -> Tensor:
    """Each sequence, int64 `[batch, n]`, as the index of its cell in the flattened joint distribution."""
    return (tokens * answers ** torch.arange(tokens.shape[1] - 1, -1, -1)).sum(dim=1)
