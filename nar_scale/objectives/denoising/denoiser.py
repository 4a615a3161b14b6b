"""`Denoiser`: the prediction of masked tokens from visible ones, a class, a prefix and the previous pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from nar_scale.errors import ConfigError
from nar_scale.model import WHOLE, SequenceParallelContext, TransformerWrapper
from nar_scale.model.layers import Embedding, Linear
from nar_scale.objectives.denoising.critic import SelfCritic
from nar_scale.objectives.objective import Objective
from nar_scale.objectives.terms import require


class Denoiser(Objective):
    """A network with its conditions and its critic; `NonAutoregressiveWrapper` trains it and generates with it.

    Args:
        net: a `TransformerWrapper` around an `Encoder`.
        mask_id: the token that stands for an unknown one.
        self_cond: condition each pass on the embeddings of the previous one (arXiv:2208.04202).
        token_critic: a `TransformerWrapper` with `logits_dim=1` that finds wrong tokens (arXiv:2209.04439).
        self_token_critic: use the network itself as the critic.
        num_classes: condition on a class, whose embedding is added to that of every token.
        prefix_length: first tokens of each sequence that are given.

    Raises:
        ConfigError: arguments that contradict each other.
    """

    mask_id: int
    fills_gaps = True
    with_decoder = False  # whether the network is a `Decoder`

    def __init__(
        self,
        net: TransformerWrapper,
        mask_id: int,
        self_cond: bool,
        token_critic: TransformerWrapper | None,
        self_token_critic: bool,
        num_classes: int | None,
        prefix_length: int,
    ):
        super().__init__()
        if net.causal and not self.with_decoder:
            raise ConfigError("NonAutoregressiveWrapper needs an Encoder; a Decoder cannot see what follows a mask")
        if not 0 <= mask_id < net.num_tokens:
            raise ConfigError(f"mask_id {mask_id} is outside the vocabulary of {net.num_tokens} tokens")
        if self_token_critic and token_critic is not None:
            raise ConfigError("token_critic and self_token_critic exclude each other; choose one")
        if not 0 <= prefix_length < net.max_seq_len:
            raise ConfigError(f"prefix_length must be at least 0 and below max_seq_len, not {prefix_length}")
        self.net = net
        self.mask_id, self.max_seq_len = mask_id, net.max_seq_len
        self.self_cond = self_cond
        if self_cond:
            self.null_embed = nn.Parameter(torch.randn(net.emb_dim))
            self.to_self_cond = Linear(net.emb_dim, net.emb_dim)
        self.token_critic: nn.Module | None = SelfCritic(net) if self_token_critic else token_critic
        self.num_classes, self.prefix_length = num_classes, prefix_length
        # the last row stands for no class
        self.class_emb: Embedding | None = None
        if num_classes is not None:
            self.class_emb = Embedding(num_classes + 1, net.emb_dim, net.embedding_std)
        self._compiled_embed: Callable[..., Tensor] | None = None

    @property
    def conditional(self) -> bool:
        """Whether the model has a condition (a class or a prefix), without which there is no guidance."""
        return self.num_classes is not None or self.prefix_length > 0

    def embed(
        self,
        tokens: Tensor,
        previous: Tensor | None = None,
        classes: Tensor | None = None,
        sum_embeds: Tensor | None = None,
        sequence_parallel: SequenceParallelContext = WHOLE,
        **net_kwargs: Any,
    ) -> Tensor:
        """Embeddings of tokens, `[batch, n, dim]`.

        Args:
            tokens: int64 `[batch, n]`.
            previous: embeddings of the previous pass, `[batch, n, dim]`, for self-conditioning; None in the first pass.
            classes: int64 `[batch]`, with `num_classes`.
            sum_embeds: added to the embeddings of the tokens, broadcastable to `[batch, n, dim]`.
            sequence_parallel: this rank's part of the sequences, which all embeddings, given and returned, are of.
            net_kwargs: further arguments of the network.

        Raises:
            ValueError: classes that are missing or not expected.
        """
        if classes is not None and self.class_emb is None:
            raise ValueError("classes were given, but the model has no num_classes")
        conditions = [] if sum_embeds is None else [sum_embeds]
        if self.class_emb is not None:
            conditions.append(self._class_embeds(classes))
        if self.self_cond:
            null = self.null_embed.expand(len(tokens), tokens.shape[1] // sequence_parallel.size, -1)
            conditions.append(self.to_self_cond(null if previous is None else previous))
        total = sum(conditions[1:], conditions[0]) if conditions else None
        out = self.net(
            tokens, return_embeddings=True, sum_embeds=total, sequence_parallel=sequence_parallel, **net_kwargs
        )
        return out[:, -tokens.shape[1] :]

    def predict(
        self, tokens: Tensor, embeddings: Tensor | None = None, classes: Tensor | None = None, **net_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Logits `[batch, n, num_tokens]` and embeddings `[batch, n, dim]` of tokens; arguments as in `embed`."""
        hidden = self.embed(tokens, embeddings, classes, **net_kwargs)
        return self.net.to_logits(hidden), hidden

    def critic_logits(self, tokens: Tensor, classes: Tensor | None = None, **net_kwargs: Any) -> Tensor:
        """The critic's logit that each token is wrong, `[batch, n]`.

        Args:
            tokens: int64 `[batch, n]`, none of them masked.
            classes: int64 `[batch]`, with `num_classes`; a critic that is a network of its own does not see them.
            net_kwargs: further arguments of the network.
        """
        if isinstance(self.token_critic, SelfCritic) and self.class_emb is not None:
            asked = net_kwargs.get("sum_embeds")
            embeds = self._class_embeds(classes)
            net_kwargs = {**net_kwargs, "sum_embeds": embeds if asked is None else embeds + asked}
        return cast(nn.Module, self.token_critic)(tokens, **net_kwargs)[:, -tokens.shape[1] :, 0]

    def compiled_embed(self) -> Callable[..., Tensor]:
        """`embed` with a static graph for each shape, made when it is first seen."""
        if self._compiled_embed is None:
            self._compiled_embed = torch.compile(self.embed, dynamic=False)
        return self._compiled_embed

    def without_prefix(self, tokens: Tensor, dropped: Tensor, start: int = 0) -> Tensor:
        """Mask the prefix of some sequences.

        Args:
            tokens: int64 `[batch, n]`.
            dropped: bool `[batch]`, true for the sequences whose prefix is masked.
            start: position of the first of the tokens in their sequence.
        """
        given = max(0, self.prefix_length - start)
        if not given:
            return tokens
        hidden = dropped[:, None] & (torch.arange(tokens.shape[1], device=tokens.device) < given)
        return tokens.masked_fill(hidden, self.mask_id)

    def without_class(self, classes: Tensor | None, dropped: Tensor) -> Tensor | None:
        """Replace the classes, int64 `[batch]`, of the sequences `dropped`, bool `[batch]`, by that for no class."""
        if classes is None or self.num_classes is None:
            return classes
        return classes.masked_fill(dropped, self.num_classes)

    def check_classes(self, classes: Tensor | None, batch: int) -> None:
        """Refuse classes of another shape than `[batch]`, and those that do not exist.

        Raises:
            ValueError: the shape is wrong, or a class does not exist (on GPUs a RuntimeError from the device).
        """
        if classes is None or self.num_classes is None:
            return  # `embed` refuses classes that are missing or not expected
        if classes.shape != (batch,):
            raise ValueError(f"classes of shape {tuple(classes.shape)} were given for {batch} sequences")
        inside = ((classes >= 0) & (classes < self.num_classes)).all()
        require(inside, f"a class is outside 0..{self.num_classes - 1}")

    def start_from(self, prompt: list[int], length: int, end_token: int | None) -> list[int]:
        """The prompt, followed by mask tokens up to the length of the sequence; see `Objective`."""
        return prompt + [self.mask_id] * (length - len(prompt))

    def probe_tokens(self, bits: Tensor) -> Tensor:
        """Tokens of which every other one is masked; see `Objective`."""
        tokens = bits % (self.net.num_tokens - 1)
        tokens = tokens + (tokens >= self.mask_id)
        return torch.where(torch.arange(len(bits)) % 2 == 0, tokens, self.mask_id)

    def run_probe(self, tokens: Tensor) -> dict[str, Tensor]:
        """The logits of a second pass, conditioned on the first one, and `judgement`, the logits of the critic if any.

        See `Objective`. The class, where there are some, is the last one.
        """
        classes = None if self.num_classes is None else tokens.new_tensor([self.num_classes - 1])
        _, embeddings = self.predict(tokens, classes=classes)
        logits, _ = self.predict(tokens, embeddings, classes)
        judgement = {} if self.token_critic is None else {"judgement": self.critic_logits(tokens, classes)}
        return {"logits": logits, **judgement}

    def _class_embeds(self, classes: Tensor | None) -> Tensor:
        if classes is None:
            raise ValueError(f"classes are needed: the model is conditional on one of {self.num_classes}")
        return cast(Embedding, self.class_emb)(classes)[:, None]
