"""The examples of the documents that this library answers to, with the import line alone changed.

Where one would take long on a CPU, the net in it is made narrower; the shapes are those the documents state.
"""

import inspect

import pytest
import torch

from nar_scale import AutoregressiveWrapper, NonAutoregressiveWrapper

SMALL_ENCODER = "attn_layers = Encoder(dim = 32, depth = 1, heads = 2)"

GENERATE = f"""
from nar_scale import TransformerWrapper, Encoder
from nar_scale import NonAutoregressiveWrapper
import torch

# Setup model
net = TransformerWrapper(
    num_tokens = 256,
    max_seq_len = 512,
    {SMALL_ENCODER}
)
model = NonAutoregressiveWrapper(net, mask_id = 255, steps = 18).cuda()

# Generate sequences
generated = model.generate(
    batch_size = 16,
    start_temperature = 1.0,
    filter_thres = 0.7
)
print(generated.shape)  # (16, 512)

# Generate a single sequence (batch dimension squeezed)
single = model.generate()
print(single.shape)  # (512,)

# Higher temperature and noise scale for more diverse outputs
diverse = model.generate(
    batch_size = 8,
    start_temperature = 2.0,
    noise_level_scale = 1.5
)
"""

NON_AUTOREGRESSIVE = """
from nar_scale import TransformerWrapper, Encoder
from nar_scale import NonAutoregressiveWrapper

NUM_TOKENS = 256
MASK_ID = NUM_TOKENS

model = TransformerWrapper(
    num_tokens = NUM_TOKENS + 1,
    max_seq_len = 512,
    attn_layers = Encoder(
        dim = 512,
        depth = 6,
        heads = 8
    )
)

model = NonAutoregressiveWrapper(
    model,
    mask_id = MASK_ID,
    steps = 18,
    schedule = 'cosine',
    self_cond = True
).cuda()
"""

AUTOREGRESSIVE = """
from nar_scale import TransformerWrapper, Decoder
from nar_scale import AutoregressiveWrapper

model = TransformerWrapper(
    num_tokens = 256,
    max_seq_len = 1024,
    attn_layers = Decoder(dim = 512, depth = 6, heads = 8)
)

model = AutoregressiveWrapper(model)
model.cuda()
"""

TRAINING_LOOP = """
import torch
from torch.optim import Adam

optimizer = Adam(model.parameters(), lr=3e-4)

for batch in dataloader:
    tokens = batch.cuda()          # shape: (batch_size, seq_len)
    loss = model(tokens)           # forward returns scalar loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""

GENERATION = """
prompt = torch.tensor([[1, 2, 3]]).cuda()
generated = model.generate(prompt, seq_len=100)  # shape: (1, 103)
"""

FORGETFUL = """
model = AutoregressiveWrapper(
    net,
    mask_prob = 0.15  # mask 15% of input tokens during training
)
"""


@pytest.fixture(autouse=True)
def anywhere(monkeypatch):
    """Without a GPU, `.cuda()` stays where it is."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
        monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)


def run(*sources, **names):
    for source in sources:
        exec(source, names)
    return names


def test_non_autoregressive_generation(capsys):
    names = run(GENERATE)
    assert capsys.readouterr().out == "torch.Size([16, 512])\ntorch.Size([512])\n"
    assert names["generated"].shape == (16, 512)
    assert names["single"].shape == (512,)
    assert names["diverse"].shape == (8, 512)
    for tokens in (names["generated"], names["single"], names["diverse"]):
        assert tokens.dtype == torch.int64
        assert ((tokens >= 0) & (tokens < 255)).all()


def test_non_autoregressive_training():
    names = run(NON_AUTOREGRESSIVE)
    model, tokens = names["model"], torch.randint(256, (2, 512)).cuda()
    losses = model(tokens)
    assert losses._fields == ("loss", "generator_loss", "critic_loss")
    assert losses.loss.shape == ()
    assert losses.critic_loss is None
    losses.loss.backward()
    assert model.net.token_emb.weight.grad.isfinite().all()
    assert losses.loss.item() > 0


def test_autoregressive_training_and_generation():
    names = run(AUTOREGRESSIVE, TRAINING_LOOP, GENERATION, dataloader=[torch.randint(256, (2, 64))] * 2)
    model, prompt = names["model"], names["prompt"]
    assert names["loss"].shape == ()
    assert names["generated"].shape == (1, 103)
    assert torch.equal(names["generated"][:, :3], prompt)
    assert model.generate(prompt, seq_len=100, return_prompt=False).shape == (1, 100)
    ragged = [torch.tensor([1, 2, 3]).cuda(), torch.tensor([4]).cuda()]
    assert model.generate(ragged, seq_len=10).shape == (2, 10)


def test_forgetful_masking():
    names = run(AUTOREGRESSIVE.replace("512, depth = 6", "32, depth = 1"))
    names["net"] = names["model"].net
    model = run(FORGETFUL, **names)["model"]
    assert model.mask_prob == 0.15
    assert model(torch.randint(256, (2, 64)).cuda()).isfinite()


def test_arguments_and_defaults_are_those_of_the_documents():
    def defaults(function):
        return {
            name: p.default for name, p in inspect.signature(function).parameters.items() if p.default is not p.empty
        }

    def begins(function, **documented):
        assert {name: defaults(function)[name] for name in documented} == documented

    begins(
        NonAutoregressiveWrapper.__init__,
        steps=18,
        self_cond=False,
        self_cond_train_prob=0.75,
        no_replace_prob=0.15,
        random_token_prob=0.1,
        schedule="linear",
        can_mask_prev_unmasked=False,
        token_critic=None,
        self_token_critic=False,
        critic_loss_weight=1.0,
        use_simple_mdlm_loss_weight=True,
    )
    begins(
        NonAutoregressiveWrapper.generate,
        batch_size=None,
        start_temperature=1.0,
        filter_thres=0.7,
        noise_level_scale=1.0,
    )
    begins(
        AutoregressiveWrapper.__init__,
        ignore_index=-100,
        pad_value=0,
        mask_prob=0.0,
        add_attn_z_loss=False,
        next_embed_loss_weight=0.1,
    )
