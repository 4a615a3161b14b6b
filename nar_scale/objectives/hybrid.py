"""`HybridWrapper`: one network that is an autoregressive model and block diffusion at once."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_scale.config import LeftToRightDecoding, SamplerConfig, SelfSpeculativeDecoding
from nar_scale.data import Batch
from nar_scale.decoding import Continued, Prompts, StepCallback, eligible, self_speculate
from nar_scale.errors import ConfigError
from nar_scale.masking import Noise
from nar_scale.model import WHOLE, SequenceParallelContext, TransformerWrapper
from nar_scale.objectives.autoregressive import AutoregressiveWrapper, cross_entropy
from nar_scale.objectives.causal_blocks import CausalBlockDiffusion
from nar_scale.objectives.documents import check_documents, continues, within_documents
from nar_scale.objectives.left_to_right import FilterChoice, check_sampling, chosen_filters, limits_of
from nar_scale.objectives.objective import Objective, Samples, evaluating, without_padding
from nar_scale.objectives.predicted import PredictedTokens, losses_by_masked_fraction, slots_for
from nar_scale.objectives.terms import HybridLosses, LossTerms, length_mask, on_device, require, sequence_moments


class HybridWrapper(Objective):
    """Trains a `Decoder` to predict the next token and to unmask blocks of tokens, both in one forward pass.

    The masked copy of a sequence and the true one pass the network side by side, as in block diffusion
    (arXiv:2503.09573), but the true one is causal: it yields the autoregressive loss, and the masked one, whose blocks
    see themselves and the true tokens of the blocks before, block diffusion's bound. The loss is the sum of both with
    a weight for each.

    What is trained so generates left to right, block by block, or left to right from drafts that the diffusion side
    makes of whole blocks, which gives the same distribution in fewer network calls.

    Args:
        net: a `TransformerWrapper` around a `Decoder`.
        mask_id: the token that stands for an unknown one; it is the answer to no
            question: the network's logits of it are -inf from then on.
        block_size: tokens in a block; divides `max_seq_len`.
        autoregressive_weight: weight of the autoregressive loss, at least 0.
        diffusion_weight: weight of block diffusion's, at least 0.

    Attributes:
        autoregressive: left-to-right generation with the same network.
        diffusion: block diffusion with it.

    Raises:
        ConfigError: arguments that contradict each other.
    """

    mask_id: int
    samples_padded = True
    bound_term = 1
    copies = 2

    def __init__(
        self,
        net: TransformerWrapper,
        *,
        mask_id: int,
        block_size: int,
        autoregressive_weight: float = 1.0,
        diffusion_weight: float = 0.3,
    ):
        super().__init__()
        if not net.causal:
            raise ConfigError("HybridWrapper needs a Decoder; an Encoder sees the token it is to predict")
        if min(autoregressive_weight, diffusion_weight) < 0 or autoregressive_weight + diffusion_weight == 0:
            raise ConfigError("autoregressive_weight and diffusion_weight must be at least 0, and one of them above")
        net.to_logits.excluded = mask_id
        self.net = net
        self.autoregressive = AutoregressiveWrapper(net)
        self.diffusion = CausalBlockDiffusion(net, mask_id=mask_id, block_size=block_size)
        self.mask_id, self.block_size, self.max_seq_len = mask_id, block_size, net.max_seq_len
        self.autoregressive_weight, self.diffusion_weight = autoregressive_weight, diffusion_weight

    @property
    def term_names(self) -> tuple[str, ...]:
        """`token_loss`, the autoregressive one, and `diffusion_loss`."""
        return ("token_loss", "diffusion_loss")

    @property
    def likelihood_kind(self) -> str:
        """`exact`: the token loss is the negative log-likelihood; the diffusion loss is a bound on it."""
        return "exact"

    def counts(self, batch: Batch, *, seed: int = 0) -> Tensor:
        """The number of tokens that follow another, and that of all tokens; see `Objective`."""
        present = length_mask(batch.lengths, batch.tokens.shape[1])
        return torch.stack((_followed(present, batch.documents).sum(), present.sum())).float()

    def loss_terms(self, batch: Batch, *, seed: int = 0) -> LossTerms:
        """The loss terms of a batch of the training stream; see `Objective`."""
        sequence_parallel = self.sequence_parallel if self.training else WHOLE
        noise = Noise.of_samples(seed, batch.epochs, batch.sample_ids, batch.positions)
        lengths = batch.lengths if batch.padded else None
        slots = self._slots(batch, sequence_parallel, seed)
        return self._loss_terms(batch.tokens, noise, lengths, batch.documents, sequence_parallel, slots)

    def forward(self, x: Tensor, *, lens: Tensor | None = None, documents: Tensor | None = None) -> HybridLosses:
        """Predict each token from those before it, and masked tokens; the masks come from torch's default generator.

        Args:
            x: token ids, int64 `[batch, max_seq_len]`.
            lens: int64 `[batch]`, true lengths of padded sequences.
            documents: int64 `[batch, n]`, the number of the document that each token belongs to, never falling from
                left to right; None for one document. The documents of a sample do not see each other.

        Raises:
            ValueError: a sequence of the wrong length, one that contains the mask id, or documents that do not fit the
                tokens (the last two a RuntimeError from the device on GPUs, where checking at once would make every
                step wait).
        """
        if x.shape[1] != self.max_seq_len:
            raise ValueError(f"sequences have {x.shape[1]} tokens, but max_seq_len is {self.max_seq_len}")
        require(x.ne(self.mask_id).all(), f"the data contains the mask id {self.mask_id}")
        if documents is not None:
            check_documents(documents, x, lens)
        terms = self._loss_terms(x, Noise.draw(len(x), x.device), lens, documents)
        token_loss, diffusion_loss = terms.sums / terms.counts.clamp(min=1)
        return HybridLosses(terms.total(), token_loss, diffusion_loss)

    @torch.no_grad()
    def generate(
        self,
        prompts: Tensor | list[Tensor],
        seq_len: int | Tensor,
        eos_token: int | None = None,
        temperature: float = 1.0,
        prompt_lens: Tensor | None = None,
        filter_logits_fn: FilterChoice = None,
        draft_temperature: float | None = None,
        shared_calls: bool = True,
        return_prompt: bool = True,
        noise: Noise | None = None,
        return_network_calls: bool = False,
        callback: StepCallback | None = None,
    ) -> Tensor | Continued:
        """Continue prompts by up to `seq_len` tokens, by drafts of blocks that the network verifies itself.

        The result has the distribution of `autoregressive.generate`, at temperature 0 the same tokens;
        `diffusion.generate` fills in masks block by block.

        Args:
            prompts: int64 `[batch, n]` or `[n]`, or a list of `[n_i]` of different lengths.
            seq_len: tokens to generate for each prompt, at most; or int64 `[batch]`, a number for each. With the
                prompt no more than `max_seq_len`.
            eos_token: ends a sequence; what follows it is 0.
            temperature: divides the logits; 0 for the most probable token at each place.
            prompt_lens: int64 `[batch]`, true lengths of prompts that are padded on the right.
            filter_logits_fn: `top_k`, `top_p`, `min_p`, `top_a`, a callable, several callables that are applied one
                after another, or None for no filter.
            draft_temperature: of the drafts; `temperature` if not given. It decides how many are accepted, and has no
                part in the distribution.
            shared_calls: whether a call verifies a draft and makes the next one: fewer calls, but each has
                `block_size` squared masks more. Otherwise one call drafts and another verifies.
            return_prompt: return the prompt too, when it is a tensor without `prompt_lens`.
            noise: the source of all randomness; if None, it is drawn from torch's default generator.
            return_network_calls: also return the network calls in which each sequence grew.
            callback: is called after each network call with what has been generated so far, int64
                `[batch, longest]`, and the number of the call, from 1.

        Returns:
            int64 `[batch, n + seq_len]`, without the prompt `[batch, seq_len]`; with `return_network_calls`
            `Continued`, whose tokens are these.

        Raises:
            ValueError: an empty prompt, or one that leaves no room for `seq_len` tokens.
        """
        device = self.net.token_emb.weight.device
        given = Prompts.of(prompts, prompt_lens, self.net.num_tokens, device, self.mask_id)
        most, seq_lens = limits_of(seq_len, len(given.tokens))
        draft_temperature = temperature if draft_temperature is None else draft_temperature
        check_sampling(most, temperature, eos_token, self.net.num_tokens)
        check_sampling(most, draft_temperature, eos_token, self.net.num_tokens)
        sizes = given.tokens.shape[1] if given.lengths is None else given.lengths
        longest = int(torch.as_tensor(sizes + (most if seq_lens is None else seq_lens.to(given.tokens.device))).max())
        if longest > self.max_seq_len:
            raise ValueError(f"prompt and new tokens are {longest}, but max_seq_len is {self.max_seq_len}")
        with evaluating(self):
            result = self_speculate(
                self.net,
                given,
                most,
                mask_id=self.mask_id,
                block_size=self.block_size,
                noise=noise or Noise.draw(len(given.tokens), given.tokens.device),
                temperature=temperature,
                draft_temperature=draft_temperature,
                shared_calls=shared_calls,
                filters=chosen_filters(filter_logits_fn),
                eos_token=eos_token,
                pad_value=self.autoregressive.pad_value,
                seq_lens=seq_lens,
                callback=callback,
            )
        single = isinstance(prompts, Tensor) and prompts.ndim == 1
        tokens, calls = result
        if return_prompt and isinstance(prompts, Tensor) and prompt_lens is None:
            tokens = torch.cat((given.tokens, tokens), dim=1)
        if single:
            tokens, calls = tokens[0], calls[0]
        return Continued(tokens, calls) if return_network_calls else tokens

    def start_from(self, prompt: list[int], length: int, end_token: int | None) -> list[int]:
        """The prompt, or the end token (0 if it is unknown), after which a document begins; see `Objective`."""
        return self.autoregressive.start_from(prompt, length, end_token)

    def sample(
        self,
        given: Tensor,
        decoding: SamplerConfig,
        noise: Noise,
        *,
        length: int | None = None,
        lengths: Tensor | None = None,
        classes: Tensor | None = None,
        end_token: int | None = None,
        callback: StepCallback | None = None,
    ) -> Samples:
        """Continue prompts; see `Objective`. Samplers that fill in masks do so block by block."""
        settings: dict[str, Any] = {"end_token": end_token, "callback": callback}
        if isinstance(decoding, LeftToRightDecoding):
            return self.autoregressive.sample(given, decoding, noise, length=length, lengths=lengths, **settings)
        longest = length or self.max_seq_len
        sizes = torch.full((len(given),), given.shape[1], device=given.device) if lengths is None else lengths
        if not isinstance(decoding, SelfSpeculativeDecoding):
            whole = F.pad(given, (0, longest - given.shape[1]))
            whole = whole.masked_fill(torch.arange(longest, device=given.device) >= sizes[:, None], self.mask_id)
            filled = self.diffusion.sample(whole, decoding, noise, **settings)
            tokens = [_until(row[size:], end_token) for row, size in zip(filled.tokens, sizes.tolist())]
            return Samples(tokens, filled.network_calls)
        result = self.generate(
            given,
            longest - sizes,
            prompt_lens=lengths,
            eos_token=end_token,
            temperature=decoding.temperature,
            shared_calls=decoding.shared_calls,
            filter_logits_fn=eligible(decoding.top_k, decoding.top_p),
            return_prompt=False,
            noise=noise,
            callback=callback,
            return_network_calls=True,
        )
        continued, network_calls = cast(Continued, result)
        rows = without_padding(continued, longest - sizes)
        return Samples([_until(row, end_token) for row in rows], network_calls.tolist())

    def probe_tokens(self, bits: Tensor) -> Tensor:
        """Tokens of which every other one is masked; see `Objective`."""
        return self.diffusion.probe_tokens(bits)

    def run_probe(self, tokens: Tensor) -> dict[str, Tensor]:
        """The logits of the masked tokens and, as `next_logits`, those of the next ones; see `Objective`."""
        logits = {"logits": self.diffusion.predict(tokens)[0], "next_logits": self.net(tokens)}
        return {name: each.masked_fill(each == -torch.inf, 0.0) for name, each in logits.items()}

    def _loss_terms(
        self,
        tokens: Tensor,
        noise: Noise,
        lengths: Tensor | None,
        documents: Tensor | None,
        sequence_parallel: SequenceParallelContext = WHOLE,
        slots: tuple[int, int] | None = None,
    ) -> LossTerms:
        net_kwargs: dict[str, Any] = {"sequence_parallel": sequence_parallel}
        if documents is not None:
            net_kwargs = within_documents(self.net, documents, net_kwargs)
        present = torch.ones_like(tokens, dtype=torch.bool)
        if lengths is not None:
            present = net_kwargs["mask"] = length_mask(lengths, tokens.shape[1])
        masked = self.diffusion.mask(tokens, present, noise)
        of_masked, of_true = self.diffusion.embed_both(masked.tokens.view_as(tokens), tokens, net_kwargs)

        followed = _followed(present, documents)
        next_slots, masked_slots = slots or (None, None)
        next_tokens = PredictedTokens.of(followed, sequence_parallel, next_slots)
        masked_tokens = PredictedTokens.of(masked.mask.view_as(tokens), sequence_parallel, masked_slots)
        embeddings = torch.cat((next_tokens.select_local(of_true), masked_tokens.select_local(of_masked)))
        answers = torch.cat((next_tokens.answers(tokens.roll(-1, dims=1)), masked_tokens.answers(tokens)))
        losses = self.net.to_logits(embeddings, cross_entropy, answers)
        of_next, of_mask = losses.split((len(next_tokens.positions), len(masked_tokens.positions)))
        bound = of_mask * masked_tokens.spread(masked.weights.float())

        sums = torch.stack((of_next.sum(), bound.sum()))
        row_counts, all_counts = (sequence_parallel.shard(each).sum(dim=1) for each in (followed, present))
        counts = torch.stack((row_counts.sum(), all_counts.sum())).float()
        weights = on_device((self.autoregressive_weight, self.diffusion_weight), sums)
        metrics = losses_by_masked_fraction(of_mask, masked, masked_tokens)
        moments = sequence_moments(of_next, next_tokens.rows(len(tokens)), row_counts)
        return LossTerms(sums, counts, weights, metrics, moments)

    def _slots(self, batch: Batch, sequence_parallel: SequenceParallelContext, seed: int) -> tuple[int, int] | None:
        """Slots for the next and the masked tokens of a batch on a GPU, see `slots_for`; None on other devices."""
        host = batch.on_host
        if host is None:
            return None
        present = length_mask(host.lengths, host.tokens.shape[1])
        noise = Noise.of_samples(seed, host.epochs, host.sample_ids, host.positions)
        chosen = _followed(present, host.documents), self.diffusion.mask(host.tokens, present, noise).mask
        mine = [sequence_parallel.shard(each.view_as(host.tokens)) for each in chosen]
        return slots_for(mine[0].sum(), mine[0].numel()), slots_for(mine[1].sum(), mine[1].numel())


def _until(tokens: list[int], end_token: int | None) -> list[int]:
    """What stands before the first end token."""
    return tokens[: tokens.index(end_token)] if end_token in tokens else tokens


def _followed(present: Tensor, documents: Tensor | None) -> Tensor:
    """Whether each token is followed by one of its document, which it is to predict; bool `[batch, n]`."""
    followed = present[:, 1:] if documents is None else present[:, 1:] & continues(documents)
    return F.pad(followed, (0, 1))
