"""Noise as a counter: random numbers that are pure functions of integers.

No generator state exists, so a number is the same on any rank, in any micro-batch and on any device.
The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
Generators, OOPSLA 2014).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: 2**64 over the golden ratio
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64; torch shifts in the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """Scramble int64 values, one to one (the SplitMix64 finaliser); same shape and dtype."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def hash_counters(*counters: Tensor | int) -> Tensor:
    """Hash int64 counters, broadcast against each other, to one int64 each, uniform over all bits."""
    tensors = [counter for counter in counters if isinstance(counter, Tensor)]
    device = tensors[0].device if tensors else None
    state = torch.zeros((), dtype=torch.int64, device=device)
    for counter in counters:
        # filled on the device: copying a number there would make the host wait
        value = counter if isinstance(counter, Tensor) else torch.full((), counter, dtype=torch.int64, device=device)
        state = mix(state + _GOLDEN + mix(value + _GOLDEN))
    return state


def to_uniform(bits: Tensor) -> Tensor:
    """Turn int64 bits into float64 in the open interval (0, 1), with 52 random bits.

    One bit more, and the half added to the largest value would round it to 1.
    """
    return (_shift_right(bits, 12).double() + 0.5) * 2.0**-52


def to_gumbel(bits: Tensor) -> Tensor:
    """Turn int64 bits into standard Gumbel noise, float64.

    In float32 the largest values cannot occur, which lowers the temperature of what is sampled
    (arXiv:2409.02908); with 52 bits the distortion is below 1e-15.
    """
    return -(-to_uniform(bits).log()).log()


@dataclass(frozen=True)
class Noise:
    """The random numbers of a batch: one int64 key a sequence, and streams derived from it by name.

    Args:
        keys: int64 `[batch]`, what makes the noise of a sequence its own.
        strata: int64 `[batch]`; as unsigned integers over 2**64 they are the sequences' place in (0, 1),
            spread evenly over any run of consecutive stream positions.
    """

    keys: Tensor
    strata: Tensor

    @classmethod
    def of_samples(cls, seed: int, epochs: Tensor, sample_ids: Tensor, positions: Tensor) -> Noise:
        """Noise of samples from the training stream; all arguments int64 `[batch]`.

        `positions` are the places in the stream (a function of seed, epoch and sample id), on which the
        strata form a Weyl sequence with the golden ratio: stratified over every global batch, whatever
        its size, ranks, micro-batches or accumulation.
        """
        offset = hash_counters(torch.full((), seed, dtype=torch.int64, device=positions.device))
        return cls(hash_counters(seed, epochs, sample_ids), positions * _GOLDEN + offset)

    @classmethod
    def of_requests(cls, seed: int, request_ids: Tensor) -> Noise:
        """Noise of evaluation or generation requests, int64 `[batch]`, stratified over their ids."""
        return cls.of_samples(seed, torch.zeros_like(request_ids), request_ids, request_ids)

    @classmethod
    def draw(cls, batch: int, device: torch.device) -> Noise:
        """Fresh noise from torch's default generator, so that `torch.manual_seed` reproduces it."""
        first = int(torch.randint(2**62, ()).item())
        return cls.of_requests(first, torch.arange(batch, device=device))

    def derive(self, stream: int) -> Noise:
        """Independent noise of the same sequences: for another purpose, or another decoding step."""
        return replace(self, keys=hash_counters(self.keys, stream))

    def split(self, parts: int) -> Noise:
        """Noise of each of `parts` equal parts of every sequence, row by row; stratified over all of them.

        With one part this is the noise of the sequence itself.
        """
        part = torch.arange(parts, device=self.keys.device)
        keys = self.keys[:, None] + mix(part)  # mix(0) is 0
        return Noise(keys.flatten(), (self.strata[:, None] * parts + part * _GOLDEN).flatten())

    def progress(self) -> Tensor:
        """Stratified uniform numbers in (0, 1), float64 `[batch]`."""
        return to_uniform(self.strata)

    def bits(self, *shape: int) -> Tensor:
        """Independent random bits, int64 `[batch, *shape]`."""
        count = 1
        for size in shape:
            count *= size
        counters = torch.arange(count, device=self.keys.device)
        return hash_counters(self.keys[:, None], counters).view(-1, *shape)

    def uniform(self, *shape: int) -> Tensor:
        """Independent uniform numbers in (0, 1), float64 `[batch, *shape]`."""
        return to_uniform(self.bits(*shape))

    def uniform_of_streams(self, streams: int) -> Tensor:
        """`derive(i).uniform()` of the streams i = 0, 1, ..., at once; float64 `[streams, batch]`."""
        keys = hash_counters(self.keys, torch.arange(streams, device=self.keys.device)[:, None])
        return to_uniform(hash_counters(keys, 0))

    def gumbel(self, *shape: int) -> Tensor:
        """Independent standard Gumbel numbers, float64 `[batch, *shape]`."""
        return to_gumbel(self.bits(*shape))
