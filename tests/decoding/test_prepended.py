"""Generation after prepended embeddings, as in training: each token is what a whole forward pass says."""

import pytest
import torch

from nar_scale.decoding import predictor
from nar_scale.model import Decoder
from nar_scale.objectives import AutoregressiveWrapper
from tests.errors import refused
from tests.masking.helpers import requests, rows_of
from tests.model.helpers import small_net
from tests.objectives.helpers import random_tokens, small_ar

PREFIX, LENGTHS = 3, [5, 1, 9, 3, 5]
NETS = {"rotary": {}, "learned_positions": {"rotary": False}, "window": {"window": 4, "kv_heads": 1}}
every_net = pytest.mark.parametrize("options", NETS.values(), ids=NETS)


def attentive(**options):
    """A wrapper whose tokens depend on what is far away, as those of an untrained net hardly do."""
    wrapper = small_ar(net=options)
    with torch.no_grad():
        for block in wrapper.net.attn_layers.blocks:
            block.attention.to_out.weight.mul_(300)
    return wrapper


def prefixes(batch, length=PREFIX):
    return 30 * torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(1))


def prompts_of(lengths=LENGTHS):
    return [tokens[:length] for tokens, length in zip(random_tokens(len(lengths), 20), lengths)]


@torch.no_grad()
def greedy_by_hand(net, prefix, tokens, seq_len):
    """Each token from a whole forward pass over the prefix and the last tokens that fit beside it."""
    for _ in range(seq_len):
        window = tokens[None, -(net.max_seq_len - len(prefix)) :]
        tokens = torch.cat((tokens, net(window, prepend_embeds=prefix[None])[0, -1].argmax()[None]))
    return tokens


@every_net
@pytest.mark.parametrize("cache_kv", [True, False])
@pytest.mark.parametrize("length", [1, 4, 9, 15])
def test_greedy_equals_whole_forward_passes_even_past_max_seq_len(options, cache_kv, length):
    wrapper, prompts, prefix = attentive(**options), random_tokens(3, length), prefixes(3)
    generated = wrapper.generate(prompts, 10, temperature=0.0, cache_kv=cache_kv, prepend_embeds=prefix)
    assert generated.shape == (3, length + 10)
    for prompt, given, ours in zip(prompts, prefix, generated):
        assert torch.equal(ours, greedy_by_hand(wrapper.net, given, prompt, 10))
    if "window" not in options:  # which soon passes the prefix
        for other in ({}, {"prepend_embeds": prefix.flip(0)}):
            assert not torch.equal(generated, wrapper.generate(prompts, 10, temperature=0.0, **other))


@every_net
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_ragged_prompts_come_out_as_each_alone(options, temperature):
    wrapper, prompts, prefix, noise = attentive(**options), prompts_of(), prefixes(5), requests(5)
    settings = {"temperature": temperature, "filter_logits_fn": "top_p"}
    together = wrapper.generate(prompts, 9, noise=noise, prepend_embeds=prefix, **settings)
    assert torch.equal(
        together, wrapper.generate(prompts, 9, noise=noise, prepend_embeds=prefix, cache_kv=False, **settings)
    )
    for row, prompt in enumerate(prompts):
        rows = slice(row, row + 1)
        if temperature == 0:
            alone = greedy_by_hand(wrapper.net, prefix[row], prompt, 9)[len(prompt) :]
        else:
            alone = wrapper.generate(
                prompt[None],
                9,
                noise=rows_of(noise, rows),
                prepend_embeds=prefix[rows],
                return_prompt=False,
                **settings,
            )[0]
        assert torch.equal(alone, together[row])


@every_net
def test_beams_take_their_prefix_along(options):
    wrapper, prompts, prefix = attentive(**options), prompts_of(), prefixes(5)
    beams = wrapper.beam_search(prompts, 8, beams=3, prepend_embeds=prefix)
    for row, prompt in enumerate(prompts):
        rows = slice(row, row + 1)
        alone = wrapper.beam_search(prompt[None], 8, beams=3, cache_kv=False, prepend_embeds=prefix[rows])
        assert torch.equal(alone[0], beams[row])
    single = wrapper.beam_search(prompts, 8, beams=1, prepend_embeds=prefix)
    assert torch.equal(single, wrapper.generate(prompts, 8, temperature=0.0, prepend_embeds=prefix))


@every_net
def test_compiled_steps_give_the_same_tokens(monkeypatch, options):
    """The steps as they are compiled, run plainly; `test_compiled.py` shows what compiling makes of them."""
    monkeypatch.setattr(predictor, "compiled_step", lambda step, on_gpu: step)
    wrapper, prefix = attentive(max_seq_len=20, **options), prefixes(5)
    for prompts in (prompts_of(), random_tokens(5, 4)):
        expected = wrapper.generate(prompts, 18, temperature=0.0, prepend_embeds=prefix)
        ours = wrapper.generate(prompts, 18, temperature=0.0, prepend_embeds=prefix, compile=True)
        assert torch.equal(ours, expected)


def test_with_a_context_and_amateurs():
    net = small_net(Decoder, cross_attend=True, dim_context=5)
    wrapper, prompts = AutoregressiveWrapper(net), prompts_of([4, 2])
    context = 20 * torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    settings = {"context": context, "prepend_embeds": prefixes(2), "temperature": 0.0}
    settings["amateur_model"] = small_net(Decoder, depth=1)
    together = wrapper.generate(prompts, 12, **settings)
    assert torch.equal(together, wrapper.generate(prompts, 12, cache_kv=False, **settings))
    settings["context"] = context.flip(0)
    assert not torch.equal(together, wrapper.generate(prompts, 12, **settings))


@pytest.mark.parametrize("prefix", [prefixes(1), prefixes(2)[..., :8], prefixes(2, 12), prefixes(2)[0]])
def test_a_prefix_that_does_not_fit_is_refused(prefix):
    with refused(ValueError, "prepend_embeds", list(prefix.shape), 12):
        small_ar().generate(random_tokens(2, 4), 3, prepend_embeds=prefix)
