"""`AutoregressiveWrapper`: next-token prediction and left-to-right generation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_scale.data import Batch
from nar_scale.errors import ConfigError
from nar_scale.masking import Noise, random_subset
from nar_scale.model import WHOLE, SequenceParallelContext, TransformerOutput, TransformerWrapper
from nar_scale.objectives.documents import check_documents, continues, document_positions, within_documents
from nar_scale.objectives.left_to_right import LeftToRightGenerator
from nar_scale.objectives.predicted import PredictedTokens, slots_for
from nar_scale.objectives.terms import LossTerms, length_mask, on_device, sequence_moments

_HIDE = 200  # stream of a sequence's noise


class AutoregressiveWrapper(LeftToRightGenerator):
    """Trains a `Decoder` to predict the next token and generates left to right.

    Args:
        net: a `TransformerWrapper` around a `Decoder`.
        ignore_index: targets with this value do not count; as inputs they become `pad_value`.
        pad_value: the token that fills up prompts and follows an end token.
        mask_prob: fraction of the tokens, in [0, 1), that are hidden from attention in training, never the first one
            (forgetful causal masking, arXiv:2210.13432).
        add_attn_z_loss: add the attention z-loss (ST-MoE, arXiv:2202.08906, eq. 5).
        next_embed_loss_weight: weight of the L1 loss of the predicted next embedding, with a network that has
            `add_continuous_pred_head`.

    Raises:
        ConfigError: an `Encoder`, or a `mask_prob` outside [0, 1).
    """

    def __init__(
        self,
        net: TransformerWrapper,
        ignore_index: int = -100,
        pad_value: int = 0,
        mask_prob: float = 0.0,
        add_attn_z_loss: bool = False,
        next_embed_loss_weight: float = 0.1,
    ):
        super().__init__()
        if not net.causal:
            raise ConfigError("AutoregressiveWrapper needs a Decoder; an Encoder sees the token it is to predict")
        if not 0.0 <= mask_prob < 1.0:
            raise ConfigError(f"mask_prob must be at least 0 and below 1, not {mask_prob}")
        self.net = net
        self.max_seq_len = net.max_seq_len
        self.ignore_index, self.pad_value, self.mask_prob = ignore_index, pad_value, mask_prob
        self.add_attn_z_loss, self.next_embed_loss_weight = add_attn_z_loss, next_embed_loss_weight

    @property
    def term_names(self) -> tuple[str, ...]:
        """`token_loss`, and those of the optional losses that are there."""
        optional = [("attention_z_loss", self.add_attn_z_loss), ("next_embed_loss", self.net.add_continuous_pred_head)]
        return ("token_loss", *(name for name, present in optional if present))

    @property
    def likelihood_kind(self) -> str:
        """`exact`: the token loss is the negative log-likelihood."""
        return "exact"

    def counts(self, batch: Batch, *, seed: int = 0) -> Tensor:
        """The number of predicted tokens, for each term; see `Objective`."""
        predicted = length_mask(batch.lengths - 1, batch.tokens.shape[1] - 1)
        if batch.documents is not None:
            predicted = predicted & continues(batch.documents)
        return predicted.sum().float().expand(len(self.term_names)).clone()

    def loss_terms(self, batch: Batch, *, seed: int = 0) -> LossTerms:
        """The loss terms of a batch of the training stream; see `Objective`. The seed is that of hidden tokens."""
        noise = Noise.of_samples(seed, batch.epochs, batch.sample_ids, batch.positions)
        lengths, sequence_parallel = (
            batch.lengths if batch.padded else None,
            self.sequence_parallel if self.training else WHOLE,
        )
        slots = self._slots(batch, sequence_parallel)
        return self._loss_terms(batch.tokens, noise, lengths, batch.documents, None, {}, sequence_parallel, slots)[0]

    def forward(
        self,
        x: Tensor,
        return_outputs: bool = False,
        prepend_embeds: Tensor | None = None,
        lens: Tensor | None = None,
        *,
        documents: Tensor | None = None,
        **net_kwargs: Any,
    ) -> Any:
        """Predict each token from those before it.

        The documents of a sample do not see each other: the loss is that of each on its own, without its first token.

        Args:
            x: token ids, int64 `[batch, n]`.
            return_outputs: also return logits and embeddings.
            prepend_embeds: a prefix of embeddings that is attended but not predicted, `[batch, prefix, dim]`.
            lens: int64 `[batch]`, true lengths of padded sequences.
            documents: int64 `[batch, n]`, the number of the document that each token belongs to, never falling from
                left to right; None for one document.
            net_kwargs: further arguments of the network.

        Returns:
            the loss, a scalar in nats per predicted token, and with `return_outputs`
            `(loss, (logits [batch, n - 1, num_tokens], TransformerOutput))`.

        Raises:
            ValueError: documents that do not fit the tokens (a RuntimeError from the device on GPUs, where checking at
                once would make every step wait), or with `prepend_embeds`.
        """
        if documents is not None:
            check_documents(documents, x, lens)
        # a device need not count what is predicted where that is all but the first tokens
        slots = x[:, 1:].numel() if x.device.type != "cpu" and lens is None and documents is None else None
        noise = Noise.draw(len(x), x.device)
        terms, output = self._loss_terms(x, noise, lens, documents, prepend_embeds, net_kwargs, slots=slots)
        loss = terms.total()
        return (loss, (self.net.to_logits(output.embeddings), output)) if return_outputs else loss

    def probe_tokens(self, bits: Tensor) -> Tensor:
        """Any tokens; see `Objective`."""
        return bits % self.net.num_tokens

    def run_probe(self, tokens: Tensor) -> dict[str, Tensor]:
        """The logits; see `Objective`."""
        return {"logits": self.net(tokens)}

    def _loss_terms(
        self,
        tokens: Tensor,
        noise: Noise,
        lengths: Tensor | None,
        documents: Tensor | None,
        prepend_embeds: Tensor | None,
        net_kwargs: dict[str, Any],
        sequence_parallel: SequenceParallelContext = WHOLE,
        slots: int | None = None,
    ) -> tuple[LossTerms, TransformerOutput]:
        if lengths is not None:
            tokens = tokens.masked_fill(~length_mask(lengths, tokens.shape[1]), self.ignore_index)
        # the last token has nothing to predict; it is an input only where the inputs would not divide without it
        extra = -(tokens.shape[1] - 1) % sequence_parallel.size
        targets = F.pad(tokens[:, 1:], (0, extra), value=self.ignore_index)
        net_kwargs = {**net_kwargs, "prepend_embeds": prepend_embeds}
        if documents is not None:
            targets = targets.masked_fill(~F.pad(continues(documents), (0, extra), value=True), self.ignore_index)
            net_kwargs = within_documents(self.net, documents, net_kwargs, targets.shape[1])
        inputs = tokens[:, : targets.shape[1]]
        inputs = inputs.masked_fill(inputs == self.ignore_index, self.pad_value)
        predicted = targets != self.ignore_index
        prefix = prepend_embeds.shape[1] if prepend_embeds is not None else 0
        if (
            self.net.add_continuous_pred_head
            and self.net.pos_emb is not None
            and prefix + tokens.shape[1] > self.max_seq_len
        ):
            raise ValueError(
                f"{prefix + tokens.shape[1]} tokens exceed max_seq_len {self.max_seq_len}: the continuous head needs a "
                "learned position for the last target too"
            )
        if self.mask_prob > 0 and self.training:
            visible = self._visible(inputs[:, : tokens.shape[1] - 1], documents, noise.derive(_HIDE))
            visible = F.pad(visible, (prefix, extra), value=True)
            asked = net_kwargs.get("mask")
            net_kwargs = {**net_kwargs, "mask": visible if asked is None else visible & asked}
        output = self.net(
            inputs,
            return_output=True,
            with_z_loss=self.add_attn_z_loss,
            sequence_parallel=sequence_parallel,
            **net_kwargs,
        )
        output = output._replace(embeddings=output.embeddings[:, prefix:])

        found = PredictedTokens.of(predicted, sequence_parallel, slots)
        embeddings = found.select_local(output.embeddings)
        answers = found.answers(targets)
        losses = self.net.to_logits(embeddings, cross_entropy, answers)
        sums = [losses.sum()]
        weights = [1.0]
        if self.add_attn_z_loss:
            z_losses = found.select_local(output.attention_z_loss[:, prefix:])
            sums.append(z_losses.masked_fill(~found.filled, 0).sum())
            weights.append(self.net.attn_z_loss_weight)
        if self.net.add_continuous_pred_head:
            positions = prefix + 1 + found.positions % targets.shape[1]
            if documents is not None:
                positions = found.select(document_positions(documents)[:, 1:])
            distances = self._next_embed_distances(embeddings, answers.masked_fill(~found.filled, 0), positions)
            sums.append(distances.masked_fill(~found.filled, 0).sum())
            weights.append(self.next_embed_loss_weight)
        row_counts = sequence_parallel.shard(predicted).sum(dim=1)
        count = row_counts.sum().float().expand(len(sums))
        moments = sequence_moments(losses, found.rows(len(targets)), row_counts)
        return LossTerms(torch.stack(sums), count, on_device(weights, sums[0]), {}, moments), output

    def _slots(self, batch: Batch, sequence_parallel: SequenceParallelContext) -> int | None:
        """Slots for the predicted tokens of a batch on a GPU, counted in its copy on the host; None if it has none."""
        host = batch.on_host
        if host is None:
            return None
        predicted = length_mask(host.lengths - 1, host.tokens.shape[1] - 1)
        if host.documents is not None:
            predicted = predicted & continues(host.documents)
        mine = sequence_parallel.shard(F.pad(predicted, (0, -predicted.shape[1] % sequence_parallel.size)))
        return slots_for(mine.sum(), mine.numel())

    def _visible(self, inputs: Tensor, documents: Tensor | None, noise: Noise) -> Tensor:
        """Hide an exact fraction of the tokens, never a document's first."""
        n = inputs.shape[1]
        candidates = torch.ones_like(inputs, dtype=torch.bool)
        candidates[:, 0] = False
        if documents is not None:
            candidates[:, 1:] = continues(documents[:, :n])
        hidden = candidates.sum(dim=1).clamp(max=int(n * self.mask_prob))
        return ~random_subset(candidates, hidden, noise)

    def _next_embed_distances(self, embeddings: Tensor, targets: Tensor, positions: Tensor) -> Tensor:
        """L1 distances to the next tokens' embeddings, positions included: means over channels, `[slots]`."""
        truth = self.net.token_emb(targets).detach()
        if self.net.pos_emb is not None:
            truth = truth + self.net.pos_emb(positions).detach()
        return (self.net.to_next_embed_pred(embeddings) - truth).abs().mean(dim=-1)


def cross_entropy(logits: Tensor, answers: Tensor) -> Tensor:
    """In nats, float32 `[tokens]`, from logits `[tokens, num_tokens]` and the true tokens, int64 `[tokens]`."""
    return F.cross_entropy(logits.float(), answers, reduction="none")
