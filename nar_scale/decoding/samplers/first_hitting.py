"""The first-hitting sampler: continuous-time sampling without its empty steps."""

from __future__ import annotations

from torch import Tensor

from nar_scale.decoding.samplers.sampler import Call, Sampler


class FirstHitting(Sampler):
    """Positions at the times at which continuous-time sampling would reveal them (arXiv:2409.02908, section 3).

    With n masked tokens at the masked fraction t the next is revealed at t u^(1/n), at any of the n positions alike,
    u being uniform in (0, 1). Those are the places of n independent uniform numbers in falling order, one for each
    position, and so they are drawn here. With fewer calls than tokens, those that fall into the same of `steps`
    intervals of equal progress are revealed together.
    """

    def masked_after(self, call: Call) -> Tensor:
        """All but the position whose time comes first, and those in the same interval; see `Sampler`."""
        times = call.request_noise.uniform(call.tokens.shape[1]).masked_fill(~call.masked, -1.0)
        first = times.amax(dim=1, keepdim=True)
        if self.steps is None:
            return call.masked & (times < first)
        return call.masked & (self._interval(times) > self._interval(first))

    def _interval(self, times: Tensor) -> Tensor:
        progress = self.schedule.progress_at(times.clamp(0.0, 1.0))
        return (progress * (self.steps or 1)).floor().clamp(max=(self.steps or 1) - 1)
