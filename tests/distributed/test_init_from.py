"""Models with a mask token that start from autoregressive ones, on two ranks: our own, and one of transformers."""

from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nar_scale.checkpoint import WEIGHT, CheckpointStore, PartitionReader, consolidate, load_consolidated
from nar_scale.data import prepare
from nar_scale.interop import import_llama
from nar_scale.model.layers import EMBEDDING_STD
from tests.generation.helpers import export

from . import jobs
from .conftest import write_texts

EMBEDDINGS, HEAD = "net.token_emb.weight", "net.to_logits.weight"
NO_STEPS = ["training.steps=1", "schedule.warmup_steps=0", "optimizer.learning_rate=1e-30", "training.precision=fp32"]
KINDS = {
    "non_autoregressive": ["objective.kind=non_autoregressive"],
    "non_autoregressive-3": ["objective.kind=non_autoregressive", "training.zero_stage=3"],
    "block_diffusion": ["objective.kind=block_diffusion", "training.zero_stage=1"],
    "hybrid": ["objective.kind=hybrid", "objective.block_size=8"],
    "autoregressive": ["objective.kind=autoregressive"],
}
NEW = ["objective.kind=non_autoregressive", "objective.self_conditioning=true", "training.zero_stage=3"]
VOCABULARY, ROWS = 300, 320  # more than the tokenizer has ids, as many models have


def write_llama(directory: Path, texts: Path) -> Path:
    """A small model with grouped heads in bfloat16, and a tokenizer that has been learned from the texts."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=ROWS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(directory)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train(sorted(map(str, texts.glob("*.txt"))), trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


class Launch:
    """All runs, in one start of two ranks."""

    def __init__(self, directory: Path, corpus: Path):
        self.directory = directory
        byte = jobs.write_config(directory / "small.yaml", corpus)
        shape = {"dim": 32, "depth": 2, "heads": 2, "max_seq_len": jobs.SEQUENCE_LENGTH}
        export(directory / "ours", "autoregressive", model=shape)
        llama = write_llama(directory / "huggingface", write_texts(directory / "texts"))
        import_llama(llama, directory / "llama")
        tokenizer = str(directory / "llama" / "tokenizer.json")
        sizes = {"seq_len": jobs.SEQUENCE_LENGTH, "validation": 0.2, "workers": 1, "progress": False}
        prepare([directory / "texts"], directory / "shards", tokenizer=tokenizer, **sizes)
        small = [f"data.directory={directory / 'shards'}", "training.global_batch_size=4"]
        tuned = directory / "tuned" / "checkpoints" / "step-000000001"
        cases = [(f"ours-{kind}", byte, "ours", settings) for kind, settings in KINDS.items()]
        cases += [
            (f"llama-{kind}", directory / "llama" / "config.yaml", "llama", [*small, *settings])
            for kind, settings in KINDS.items()
        ]
        cases += [
            ("new", byte, "ours", NEW),
            ("tuned", byte, "ours", ["objective.kind=autoregressive", "optimizer.learning_rate=1e-2"]),
            ("from_training", byte, str(tuned), KINDS["non_autoregressive"]),
        ]
        jobs.train_in_one_launch(
            directory,
            *(
                (config, [*NO_STEPS, *settings, f"init_from={directory / source}", self.run_directory(name)])
                for name, config, source, settings in cases
            ),
        )

    def run_directory(self, name: str) -> str:
        return f"training.run_directory={self.directory / name}"

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """Those of the run's checkpoint after a step that changes nothing."""
        with PartitionReader(CheckpointStore(self.directory / name / "checkpoints").path(1)) as found:
            return {weight: found.whole(WEIGHT, weight) for weight in found.shapes}

    def exported(self, name: str) -> dict[str, torch.Tensor]:
        wrapper = load_consolidated(self.directory / name).wrapper
        return {weight: value.detach() for weight, value in wrapper.named_parameters()}


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Launch:
    return Launch(tmp_path_factory.mktemp("init"), corpus)


def assert_started_from(found: dict[str, torch.Tensor], source: dict[str, torch.Tensor], masks: bool) -> None:
    """Equal where the two correspond; the rows of the mask token are as they were initialised."""
    for name, expected in source.items():
        if masks and name in (EMBEDDINGS, HEAD):
            std = EMBEDDING_STD if name == EMBEDDINGS else (3 * expected.shape[1]) ** -0.5
            assert 0.6 * std < found[name][-1].std() < 1.5 * std
            assert len(found[name]) == len(expected) + 1
            assert found[name][:-1].equal(expected), name
        else:
            assert found[name].equal(expected), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["ours", "llama"])
def test_a_run_starts_with_the_weights_of_an_autoregressive_model(launch: Launch, source: str, kind: str) -> None:
    found, expected = launch.weights(f"{source}-{kind}"), launch.exported(source)
    assert found.keys() == expected.keys()
    assert len(expected[EMBEDDINGS]) == (257 if source == "ours" else ROWS)
    assert_started_from(found, expected, masks=kind != "autoregressive")


def test_a_training_checkpoint_is_as_good_a_start(launch: Launch) -> None:
    tuned = launch.weights("tuned")
    assert not tuned[EMBEDDINGS].equal(launch.exported("ours")[EMBEDDINGS])
    assert_started_from(launch.weights("from_training"), tuned, masks=True)


def test_what_the_objective_adds_is_as_it_was_initialised(launch: Launch) -> None:
    found, expected = launch.weights("new"), launch.exported("ours")
    assert found.keys() - expected.keys() == {"null_embed", "to_self_cond.weight"}
    assert_started_from(found, expected, masks=True)
    assert 0.5 < found["null_embed"].std() < 2  # N(0, 1)
    assert 0 < found["to_self_cond.weight"].std() < 0.5


def test_a_model_that_was_turned_is_one_to_generate_from(launch: Launch) -> None:
    consolidate(launch.directory / "llama-non_autoregressive", launch.directory / "exported")
    model = load_consolidated(launch.directory / "exported")
    assert (model.info.vocabulary_size, model.wrapper.mask_id) == (ROWS, ROWS)
    assert model.info.decode.end_token == 1
    assert model.tokenizer is not None
    assert model.tokenizer.vocabulary_size == VOCABULARY
    tokens = model.wrapper.generate(batch_size=2, steps=3)
    assert tokens.shape == (2, 32)
    assert int(tokens.max()) < ROWS
