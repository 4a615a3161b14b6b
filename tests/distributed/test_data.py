"""Real runs on what docs/data.md promises: mixtures, faults, remote shards, sequential streams, documents."""

import gzip
import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from nar_scale.checkpoint import WEIGHT, CheckpointStore, PartitionReader, TrainingState, consolidate
from nar_scale.commands.evaluate import main as evaluate
from nar_scale.config import load_config
from nar_scale.data import (
    ConcatenatedIndex,
    DatasetIndex,
    MixedOrder,
    SampleFormat,
    SampleOrder,
    Stage,
    TokenStream,
    prepare,
    train_tokenizer,
)
from nar_scale.objectives import build_wrapper
from nar_scale.training.data.build import open_training_data
from nar_scale.training.optimizers.build import parameter_groups
from nar_scale.training.optimizers.learning_rate import learning_rate_factor
from tests.data.object_server import ObjectServer
from tests.errors import assert_names

from . import jobs

SEED, BATCH, LENGTH, VOCABULARY = 0, 8, jobs.SEQUENCE_LENGTH, 257
WORDS = ("token", "shard", "rank", "epoch", "mask", "tensor", "loss", "and", "of", "the", "a", "is")

# the mixture: three stages in twelve steps, and a stop within the second
STEPS, STOP = 12, 5
FIRST, LATER, CHANGE = (0.7, 0.3), (0.25, 0.75), 4

# an epoch of faulty shards: the first micro-batch of two is skipped as a whole, and one sample later on
SHARDS, PER_SHARD, FAULTY_STEPS = 3, 16, 6
BAD_POSITIONS, LAST_BAD_STEP = (0, 1, 30), 4
BAD_REASONS = ("token 300 is outside the vocabulary", "field 'tokens.npy' cannot be read", "no field 'tokens.npy'")

# other runs that skip, as objective, stage of ZeRO and global batch size: a rank has no sample in a step, or none has
SKIPPING = {
    f"skipping-{number}": case
    for number, case in enumerate((("autoregressive", 3, 4), ("autoregressive", 2, 2), ("non_autoregressive", 3, 2)))
}
KINDS = ("autoregressive", "non_autoregressive", "block_diffusion")

BROKEN_ON_THE_WAY: dict[str, list[str | int | bytes]] = {
    "dataset.json": [503],
    "tokenizer.json": ["reset"],
    "train/shard-000000.tar.index": ["truncate"],
    "train/shard-000000.tar": ["reset"],
    "train/shard-000001.tar": ["truncate"],
    "train/shard-000002.tar": ["corrupt"],
    "train/shard-000003.tar": ["pause"],
}


def write_documents(file: Path, documents: int, seed: int) -> Path:
    generator = random.Random(seed)
    texts = (" ".join(generator.choices(WORDS, k=generator.randint(2, 30))) for _ in range(documents))
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def prepared(directory: Path, documents: int, seed: int, **settings: Any) -> Path:
    """A data set of random sentences."""
    directory.mkdir()
    file = write_documents(directory / "documents.jsonl", documents, seed)
    sizes = {"seq_len": LENGTH, "validation": 0.2, "samples_per_shard": 40}
    prepare([file], directory / "shards", workers=1, progress=False, **{**sizes, **settings})
    return directory / "shards"


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def npy(tokens: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, tokens)
    return buffer.getvalue()


def write_faulty_shards(directory: Path) -> dict[str, str]:
    """Shards of random tokens, of which the samples at BAD_POSITIONS cannot be used; reasons by key of these."""
    order = SampleOrder(np.full(SHARDS, PER_SHARD), SEED, 8)
    bad = dict(zip(order.locate(np.array(BAD_POSITIONS))[1].tolist(), BAD_REASONS))
    generator = np.random.default_rng(0)
    (directory / "train").mkdir(parents=True)
    for shard in range(SHARDS):
        with tarfile.open(directory / "train" / f"shard-{shard}.tar", "w") as tar:
            for sample in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                tokens = generator.integers(0, 20, LENGTH)
                field, content = "tokens.npy", npy(tokens)
                if bad.get(sample) == BAD_REASONS[0]:
                    content = npy(np.where(np.arange(LENGTH) == 7, 300, tokens))
                elif bad.get(sample) == BAD_REASONS[1]:
                    content = content[:-5]
                elif bad.get(sample) == BAD_REASONS[2]:
                    field = "other.npy"
                add_member(tar, f"{sample:09d}.{field}", content)
    return {f"{sample:09d}": reason for sample, reason in bad.items()}


def skipping_overrides(name: str) -> list[str]:
    kind, stage, batch = SKIPPING[name]
    sizes = [f"training.global_batch_size={batch}", "training.micro_batch_size=1", "training.steps=4"]
    return [f"objective.kind={kind}", f"training.zero_stage={stage}", *sizes]


class Data:
    """All data sets and configurations."""

    def __init__(self, directory: Path, server: ObjectServer):
        self.directory, self.server = directory, server
        self.prose = prepared(directory / "prose", 60, 1)
        self.code = prepared(directory / "code", 12, 2)
        self.documents = prepared(directory / "documents", 60, 3, document_ids=True)
        train_tokenizer([directory / "prose" / "documents.jsonl"], 270, directory / "tokenizer.json", progress=False)
        self.words = prepared(directory / "words", 115, 4, tokenizer=str(directory / "tokenizer.json"))
        self.bad = write_faulty_shards(directory / "faulty")
        for place in ("web", "shaky", "alone"):
            for file in self.words.rglob("*"):
                if file.is_file():
                    server.put(f"/{place}/{file.relative_to(self.words)}", file.read_bytes())
        for file in self.prose.rglob("*"):
            if file.is_file():
                server.put(f"/prose/{file.relative_to(self.prose)}", file.read_bytes())
        for name, faults in BROKEN_ON_THE_WAY.items():
            server.fail(f"/shaky/{name}", *faults)

        self.compressed = directory / "compressed"
        shutil.copytree(self.prose, self.compressed)
        for shard in self.compressed.rglob("*.tar"):
            shard.with_name(f"{shard.name}.gz").write_bytes(gzip.compress(shard.read_bytes()))
            shard.unlink()

    def config(self, name: str, data: dict[str, object], **sections: dict[str, object]) -> Path:
        sections.setdefault("schedule", {"kind": "constant", "warmup_steps": 2})
        path = jobs.write_config(self.directory / f"{name}.yaml", self.prose, **sections)
        values = {**yaml.safe_load(path.read_text()), "data": {"loader_workers": 1, **data}}
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    def mixture(self) -> Path:
        sources = {
            name: {"directory": str(place), "weight": weight}
            for name, place, weight in zip(("prose", "code"), (self.prose, self.code), FIRST)
        }
        curriculum = [{"from_step": CHANGE, "weights": dict(zip(sources, LATER))}]
        logging = {"every": 1, "evaluate_every": 6, "evaluation_samples": 7}
        data = {"sources": sources, "curriculum": curriculum}
        return self.config("mixture", data, training={"steps": STEPS}, model={"dropout": 0.1}, logging=logging)

    def faulty(self, **data: object) -> Path:
        settings = {"directory": str(self.directory / "faulty"), "vocabulary_size": VOCABULARY, **data}
        return self.config("faulty", settings, training={"steps": FAULTY_STEPS}, checkpoint={"every": 1})

    def sequential(self) -> Path:
        settings = {"directory": str(self.compressed), "train": "train/*.tar.gz", "sequential": True}
        return self.config("sequential", settings)

    def run_directory(self, name: str) -> Path:
        return self.directory / "runs" / name

    def in_directory(self, name: str) -> str:
        return f"training.run_directory={self.run_directory(name)}"

    def state(self, name: str, step: int) -> TrainingState:
        return TrainingState.load(self.store(name).path(step))

    def store(self, name: str) -> CheckpointStore:
        return CheckpointStore(self.run_directory(name) / "checkpoints")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Data]:
    with ObjectServer() as server:
        yield Data(tmp_path_factory.mktemp("data"), server)


class TwoRanks:
    """Runs of two ranks, in one launch."""

    def __init__(self, data: Data):
        self.data = data
        cache = f"data.cache_directory={data.directory / 'cache'}"
        web, shaky = (f"{data.server.address}/{place}" for place in ("web", "shaky"))
        mixture, faulty = data.mixture(), data.faulty(max_skipped_samples=3)
        words = data.config("words", {"directory": str(data.words)})
        documents = data.config(
            "documents",
            {"directory": str(data.documents), "document_field": "documents.npy"},
            logging={"every": 1, "evaluate_every": 6},
        )
        braces = ["data.train=train/shard-{000000..000003}.tar", f"data.directory={web}", cache]
        cases = [
            ("unbroken", mixture, []),
            ("broken", mixture, [f"training.steps={STOP}"]),
            ("without dropout", mixture, ["model.dropout=0.0", "data.loader_workers=0"]),
            ("remote source", mixture, [f"data.sources.prose.directory={data.server.address}/prose", cache]),
            ("skipping", faulty, ["data.validation=train/*.tar", "logging.evaluate_every=6"]),
            *((name, faulty, skipping_overrides(name)) for name in SKIPPING),
            ("skipping-broken", faulty, ["training.steps=3"]),
            ("skipping-broken", faulty, []),
            ("local", words, []),
            ("unmapped", words, ["data.memory_map=false"]),
            ("cold", words, braces),
            ("warm", words, [f"data.directory={web}", cache]),
            ("shaky", words, [f"data.directory={shaky}", cache, "logging.evaluate_every=6"]),
            *((kind, documents, [f"objective.kind={kind}"]) for kind in KINDS),
            ("compressed by two", data.sequential(), []),
        ]
        listing = data.directory / "cases.json"
        runs = [[str(config), [*overrides, data.in_directory(name)]] for name, config, overrides in cases]
        listing.write_text(json.dumps(runs))
        script = Path(__file__).with_name("train_cases.py")
        self.output = jobs.run(jobs.forked_command(2, script, str(listing)))

    def lines_about(self, beginning: str) -> list[str]:
        """What any run has logged."""
        return [line for line in self.output.splitlines() if line.startswith(beginning)]

    def losses(self, name: str) -> dict[int, float]:
        return jobs.losses(self.data.run_directory(name))


@pytest.fixture(scope="module")
def two_ranks(data: Data) -> TwoRanks:
    return TwoRanks(data)


class Alone(jobs.Outcomes):
    """Runs of one process, one after the other, some in the directory of the one before: status and output of each."""

    def __init__(self, data: Data):
        mixture, faulty = data.mixture(), data.faulty(max_skipped_samples=2)
        sources = {name: {"directory": str(getattr(data, name))} for name in ("prose", "code")}
        by_size = data.config("by_size", {"sources": sources}, training={"steps": 3})
        web = data.config("web", {"directory": f"{data.server.address}/alone"})
        sequential = data.sequential()
        pipe = [
            f"data.train=pipe:cat {data.prose}/train/shard-{{000000..000001}}.tar",
            f"data.directory={data.prose}",
            "data.vocabulary_size=257",
        ]
        faulty_shard = data.directory / "faulty" / "train" / "shard-1.tar"
        faults = f"data.train=pipe:cat {faulty_shard}"
        self.truncated = data.directory / "truncated"
        shutil.copytree(data.prose, self.truncated, ignore=shutil.ignore_patterns("*.index"))
        shard = self.truncated / "train" / "shard-000001.tar"
        os.truncate(shard, shard.stat().st_size // 2)
        stages = "{from_step: %d, weights: {prose: 0.7, code: 0.3}}, {from_step: %d, weights: {code: 1.0}}"
        other_cache = f"data.cache_directory={data.directory / 'other_cache'}"
        shutil.copytree(data.words, data.directory / "elsewhere")
        for name in ("missing", "other"):
            ignored = shutil.ignore_patterns("shard-000001.tar" if name == "missing" else "shard-000001.tar*")
            shutil.copytree(data.words, data.directory / name, ignore=ignored)
        shutil.copy(data.words / "train" / "shard-000000.tar", data.directory / "other" / "train" / "shard-000001.tar")
        moved = data.config("moved", {"directory": str(data.words)})
        cached = f"data.cache_directory={data.directory / 'cache_of_one'}"
        cases: dict[str, tuple[Path, list[str], str]] = {
            "mixture": (mixture, ["training.steps=3"], "mixture"),
            "other weights": (mixture, ["data.sources.prose.weight=0.5"], "mixture"),
            "changed too early": (mixture, [f"data.curriculum=[{stages % (1, 2)}]"], "mixture"),
            "source gone": (mixture, ["data.sources.code.directory=" + str(data.documents)], "mixture"),
            "changed later": (mixture, [f"data.curriculum=[{stages % (0, 3)}]", "training.steps=5"], "mixture"),
            "by size": (by_size, ["data.temperature=2.0"], "by_size"),
            "limit": (faulty, [], "limit"),
            "limit again": (faulty, [], "limit"),
            "limit raised": (faulty, ["data.max_skipped_samples=3"], "limit"),
            "truncated": (by_size, ["data.sources.prose.directory=" + str(self.truncated)], "none"),
            "what is whole": (
                by_size,
                ["data.sources.prose.directory=" + str(self.truncated), "data.max_skipped_samples=1"],
                "whole",
            ),
            "no cache": (web, [], "none"),
            "cache": (web, [cached, "training.steps=3", "logging.sample_every=3"], "web"),
            "other cache": (web, [other_cache, "logging.sample_every=6"], "web"),
            "in place": (moved, ["training.steps=3"], "moved"),
            "moved": (moved, [f"data.directory={data.directory / 'elsewhere'}"], "moved"),
            "missing shard": (moved, [f"data.directory={data.directory / 'missing'}"], "none"),
            "other shard": (moved, [f"data.directory={data.directory / 'other'}"], "moved"),
            "short samples": (moved, [f"model.max_seq_len={2 * LENGTH}", "training.steps=3"], "short"),
            "vocabulary too small": (moved, ["data.vocabulary_size=200"], "none"),
            "other vocabulary": (mixture, [f"data.sources.prose.directory={data.words}"], "none"),
            "gone": (web, [cached, "data.train=train/shard-{000000..000009}.tar"], "none"),
            "compressed": (sequential, ["training.steps=3"], "compressed"),
            "compressed again": (sequential, [], "compressed"),
            "compressed refused": (sequential, ["data.sequential=false"], "none"),
            "pipe": (sequential, pipe, "pipe"),
            "pipe refused": (sequential, [*pipe, "data.sequential=false"], "none"),
            "pipe fails": (sequential, [*pipe, "data.train=pipe:cat /nowhere.tar"], "none"),
            "pipe always fails": (
                sequential,
                [*pipe, "data.train=pipe:cat /nowhere.tar", "data.max_skipped_samples=500"],
                "none",
            ),
            "pipe breaks off": (sequential, [*pipe, f"data.train=pipe:head -c 2048 {faulty_shard}; exit 3"], "none"),
            "pipe of faults": (sequential, [*pipe, faults], "none"),
            "pipe of skipped": (sequential, [*pipe, faults, "data.max_skipped_samples=47"], "skipped"),
            "no sequential remote": (sequential, [f"data.directory={data.server.address}/alone"], "none"),
        }
        results = jobs.run_forked(
            data.directory,
            *((config, [*overrides, data.in_directory(name)], "auto") for config, overrides, name in cases.values()),
        )
        super().__init__(dict(zip(cases, results, strict=True)))


@pytest.fixture(scope="module")
def alone(data: Data) -> Alone:
    return Alone(data)


def plain_losses(config_file: Path, overrides: list[str], stream: Any) -> list[float]:
    """The losses of a plain loop on one device over whole batches."""
    config = load_config(config_file, overrides)
    training, settings = config.training, config.optimizer
    torch.manual_seed(training.seed)
    wrapper = build_wrapper(config, VOCABULARY)
    optimizer = torch.optim.AdamW(
        parameter_groups(wrapper, settings.weight_decay), lr=settings.learning_rate, betas=settings.betas
    )
    losses = []
    for step, batch in zip(range(training.steps), stream):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_factor(config.schedule, step, training.steps)
        loss = wrapper.loss_terms(batch, seed=training.seed).total()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(wrapper.parameters(), settings.gradient_clipping)
        optimizer.step()
        losses.append(loss.item())
    return losses


def whole_batches(
    index: Any, order: Any, document_field: str | None = None, skip_faults: bool = False, batch: int = BATCH
) -> TokenStream:
    sample_format = SampleFormat(LENGTH, VOCABULARY, document_field=document_field)
    sizes = {"global_batch_size": batch, "micro_batch_size": batch, "rank": 0, "world_size": 1, "workers": 0}
    return TokenStream(index, order, sample_format, skip_faults=skip_faults, **sizes)


def lines(run_directory: Path, name: str) -> dict[int, dict[str, float]]:
    """The lines of the metrics log that hold a value, by step."""
    found = map(json.loads, (run_directory / "metrics.jsonl").read_text().splitlines())
    when = ("time", "elapsed_seconds")
    return {line["step"]: {k: v for k, v in line.items() if k not in when} for line in found if name in line}


def same_weights(some: Path, others: Path) -> bool:
    with PartitionReader(some) as first, PartitionReader(others) as second:
        return first.shapes == second.shapes and all(
            torch.equal(first.whole(WEIGHT, name), second.whole(WEIGHT, name)) for name in first.shapes
        )


# mixtures


@pytest.fixture(scope="module")
def resumed(data: Data, two_ranks: TwoRanks) -> str:
    """What a second launch says that goes on with the broken run."""
    assert list(two_ranks.losses("broken")) == list(range(1, STOP + 1))
    arguments = ("--config", str(data.mixture()), data.in_directory("broken"))
    return jobs.run(jobs.deepspeed_command(2, jobs.TRAIN, *arguments))


def test_a_mixture_that_was_stopped_goes_on_bit_for_bit(data: Data, two_ranks: TwoRanks, resumed: str) -> None:
    assert f"resuming at step {STOP} of {STEPS}" in resumed
    assert list(two_ranks.losses("unbroken")) == list(range(1, STEPS + 1))
    assert two_ranks.losses("broken") == two_ranks.losses("unbroken")
    assert same_weights(data.store("broken").path(STEPS), data.store("unbroken").path(STEPS))
    assert data.state("broken", STEPS) == data.state("unbroken", STEPS)


def test_a_mixture_is_logged_and_stored_as_the_curriculum_says(data: Data, two_ranks: TwoRanks, resumed: str) -> None:
    sizes = {name: DatasetIndex.open(getattr(data, name), "train/*.tar").num_samples for name in ("prose", "code")}
    for run in ("unbroken", "broken"):
        logged = jobs.metrics(data.run_directory(run))
        for step, line in logged.items():
            assert line["samples_of_prose"] + line["samples_of_code"] == step * BATCH
            early, late = min(step, CHANGE) * BATCH, max(step - CHANGE, 0) * BATCH
            for name, first, later in zip(sizes, FIRST, LATER):
                assert line[f"samples_of_{name}"] == pytest.approx(first * early + later * late, abs=2)
                assert line[f"epochs_of_{name}"] == line[f"samples_of_{name}"] / sizes[name]
        assert logged[STEPS]["epochs_of_code"] > 2
        assert data.state(run, STEPS).source_samples == {
            name: logged[STEPS][f"samples_of_{name}"] for name in ("prose", "code")
        }
    assert data.state("broken", STOP).source_samples == {
        name: jobs.metrics(data.run_directory("unbroken"))[STOP][f"samples_of_{name}"] for name in ("prose", "code")
    }


def test_each_source_is_evaluated_by_name(data: Data, two_ranks: TwoRanks, resumed: str) -> None:
    values = {}
    for name in ("prose", "code"):
        key = f"validation_{name}_nats_per_token"
        logged = lines(data.run_directory("unbroken"), key)
        assert list(logged) == [6, STEPS]
        assert list(lines(data.run_directory("broken"), key)) == [STOP, 6, STEPS]
        assert lines(data.run_directory("broken"), key)[STEPS] == logged[STEPS]
        assert f"validation_{name}_bits_per_byte" in logged[STEPS]
        assert f"step {STEPS}, validation of {name}: " in resumed
        values[name] = logged[STEPS][key]
    assert values["prose"] != values["code"]


def test_a_mixture_trains_as_a_plain_loop(data: Data, two_ranks: TwoRanks) -> None:
    indexes = {name: DatasetIndex.open(getattr(data, name), "train/*.tar") for name in ("prose", "code")}
    orders = [SampleOrder(index.counts, SEED + (number << 32), 8) for number, index in enumerate(indexes.values())]
    order = MixedOrder(orders, [Stage(0, FIRST), Stage(CHANGE * BATCH, LATER)], SEED)
    expected = plain_losses(data.mixture(), ["model.dropout=0.0"], whole_batches(ConcatenatedIndex(indexes), order))
    assert list(two_ranks.losses("without dropout").values()) == pytest.approx(expected, rel=2e-5)


def test_one_source_may_be_remote(data: Data, two_ranks: TwoRanks) -> None:
    assert two_ranks.losses("remote source") == two_ranks.losses("unbroken")
    assert data.state("remote source", STEPS) == data.state("unbroken", STEPS)
    key = "validation_prose_nats_per_token"
    assert lines(data.run_directory("remote source"), key) == lines(data.run_directory("unbroken"), key)


def test_other_weights_in_the_past_are_refused(data: Data, alone: Alone) -> None:
    for name in ("other weights", "changed too early"):
        message = alone.error(name)
        assert "has consumed" in message
        assert "samples of prose" in message
        assert "data.curriculum or a training.batch_size_warmup from step 3 or later on" in message
    assert "fingerprint" in alone.error("source gone")
    assert "the sources have different vocabularies: prose 270 of tokenizer.json, code 257 of byte" in alone.error(
        "other vocabulary"
    )


def test_a_later_stage_may_be_added(data: Data, alone: Alone) -> None:
    assert "resuming at step 3 of 5" in alone.output("changed later")
    logged = jobs.metrics(data.run_directory("mixture"))
    assert list(logged) == [1, 2, 3, 4, 5]
    for step in (4, 5):
        assert logged[step]["samples_of_prose"] == logged[3]["samples_of_prose"]
        assert logged[step]["samples_of_code"] == logged[3]["samples_of_code"] + (step - 3) * BATCH


def open_alone(config_file: Path, *overrides: str) -> Any:
    world = SimpleNamespace(
        is_main=True, rank=0, size=1, local_size=1, device=torch.device("cpu"), broadcast=lambda value: value
    )
    return open_training_data(load_config(config_file, overrides), world)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["epochs", "size", "temperature", "high temperature"])
def test_shares_by_epochs_and_by_temperature(data: Data, way: str) -> None:
    sources = {name: {"directory": str(getattr(data, name))} for name in ("prose", "code")}
    settings: dict[str, object] = {"sources": sources}
    prose, code = (DatasetIndex.open(place, "train/*.tar").num_samples for place in (data.prose, data.code))
    if way == "epochs":
        sources["prose"]["epochs"], sources["code"]["epochs"] = 1.0, 4.0  # type: ignore[assignment]
        share = prose / (prose + 4 * code)
    else:
        settings["temperature"] = {"size": 1.0, "temperature": 2.0, "high temperature": 1e9}[way]
        share = {
            "size": prose / (prose + code),
            "temperature": prose**0.5 / (prose**0.5 + code**0.5),
            "high temperature": 0.5,
        }[way]
    opened = open_alone(data.config(f"shares-{way}", settings))
    assert opened.summary == (
        f"prose {prose} sequences in {opened.sources['prose'].num_shards} shards, {share:.2%} at first; "
        f"code {code} sequences in 1 shard, {1 - share:.2%} at first"
    )
    taken = opened.consumed(1 << 16)
    assert taken["prose"] == pytest.approx(share * 2**16, abs=1)
    if way == "epochs":
        assert taken["code"] / code == pytest.approx(4 * taken["prose"] / prose, rel=1e-3)


def test_the_shares_are_told_at_the_start(data: Data, alone: Alone) -> None:
    expected = open_alone(data.directory / "by_size.yaml", "data.temperature=2.0").summary
    assert f"data {expected} batch " in " ".join(alone.output("by size").split())


# faults


def test_a_bad_sample_is_named_once_by_two_ranks(data: Data) -> None:
    arguments = ("--config", str(data.faulty()), data.in_directory("strict"))
    output = jobs.run(jobs.deepspeed_command(2, jobs.TRAIN, *arguments), status=2)
    assert "Traceback" not in output
    named = [line for line in output.splitlines() if "error" in line]
    assert len(named) == 1, output
    assert any(f"sample {key}: {reason}" in named[0] for key, reason in data.bad.items())
    assert f"shard {data.directory}/faulty/train/shard-" in named[0]


def test_skipped_samples_are_named_and_counted(data: Data, two_ranks: TwoRanks) -> None:
    messages = two_ranks.lines_about("skipped in step ")
    sizes = [(BATCH, FAULTY_STEPS)] * 2  # of the unbroken and the broken run
    sizes += [(global_batch, 4) for _, _, global_batch in SKIPPING.values()]
    for (key, reason), position in zip(data.bad.items(), BAD_POSITIONS):
        expected = [position // batch + 1 for batch, steps in sizes if position < batch * steps]
        found = [line for line in messages if f"sample {key}: {reason}" in line]
        assert sorted(int(line.split(":")[0].split()[-1]) for line in found) == sorted(expected)
        assert all(f": shard {data.directory}/faulty/train/shard-" in line for line in found)
    for run in ("skipping", "skipping-broken"):
        logged = jobs.metrics(data.run_directory(run))
        assert {step: line["skipped_samples"] for step, line in logged.items()} == {1: 2, 2: 2, 3: 2, 4: 3, 5: 3, 6: 3}
        assert data.state(run, FAULTY_STEPS).skipped_samples == 3
    assert two_ranks.losses("skipping-broken") == two_ranks.losses("skipping")


def test_skipped_samples_are_left_out_of_evaluation(data: Data, two_ranks: TwoRanks) -> None:
    messages = two_ranks.lines_about("skipped in evaluation: ")
    assert len(messages) == len(data.bad)
    assert all(any(f"sample {key}: " in line for line in messages) for key in data.bad)
    (line,) = lines(data.run_directory("skipping"), "validation_nats_per_token").values()
    assert np.isfinite(line["validation_nats_per_token"])


@pytest.mark.parametrize("run", ["skipping", *SKIPPING])
def test_the_other_samples_train_as_in_a_plain_loop(data: Data, two_ranks: TwoRanks, run: str) -> None:
    index = DatasetIndex.open(data.directory / "faulty", "train/*.tar", skip_faults=True)
    order = SampleOrder(index.counts, SEED, 8)
    overrides = skipping_overrides(run) if run in SKIPPING else []
    batch = load_config(data.faulty(), overrides).training.global_batch_size
    stream = whole_batches(index, order, skip_faults=True, batch=batch)
    expected = plain_losses(data.faulty(), overrides, stream)
    assert np.isfinite(expected).all()
    assert list(two_ranks.losses(run).values()) == pytest.approx(expected, rel=2e-5)


def test_the_limit_holds_for_the_whole_run(data: Data, alone: Alone) -> None:
    expected = f"3 samples were skipped up to step {LAST_BAD_STEP}, more than data.max_skipped_samples 2"
    for name in ("limit", "limit again"):
        assert expected in alone.error(name)
    assert "skipped in step 1: " not in alone.results["limit again"][1]
    assert f"resuming at step {LAST_BAD_STEP - 1} of {FAULTY_STEPS}" in alone.output("limit raised")
    assert data.state("limit", FAULTY_STEPS).skipped_samples == 3


def test_a_damaged_shard_gives_what_is_whole(data: Data, alone: Alone) -> None:
    shard = alone.truncated / "train" / "shard-000001.tar"
    assert f"shard {shard} is truncated" in alone.error("truncated")
    output = alone.output("what is whole")
    assert "(1 damaged)" in output
    assert sum(f"shard {shard} is truncated" in line for line in output.splitlines()) == 1


# remote


def test_remote_shards_train_as_local_ones(data: Data, two_ranks: TwoRanks) -> None:
    expected = two_ranks.losses("local")
    assert list(expected) == [1, 2, 3, 4, 5, 6]
    for name in ("unmapped", "cold", "warm", "shaky"):
        assert two_ranks.losses(name) == expected
        assert same_weights(data.store(name).path(6), data.store("local").path(6))
        assert data.state(name, 6).fingerprint == data.state("local", 6).fingerprint


def test_each_shard_and_index_is_fetched_once(data: Data, two_ranks: TwoRanks) -> None:
    shards = [f"shard-{number:06d}.tar" for number in range(4)]
    assert sorted(file.name for file in (data.words / "train").glob("*.tar")) == shards
    fetched = data.server.gets
    for shard in shards:  # by two ranks in the cold and the warm run
        assert fetched[f"/web/train/{shard}"] == 1
        assert fetched[f"/web/train/{shard}.index"] == 1
    assert not [path for path in fetched if path.startswith("/web/validation/")]


def test_what_broke_on_the_way_was_fetched_again(data: Data, two_ranks: TwoRanks) -> None:
    assert not any(data.server.faults[f"/shaky/{name}"] for name in BROKEN_ON_THE_WAY)
    assert data.server.gets["/shaky/train/shard-000002.tar"] == 2
    assert data.server.gets["/shaky/train/shard-000003.tar"] == 1
    assert list(lines(data.run_directory("shaky"), "validation_nats_per_token")) == [6]


def test_the_tokenizer_is_fetched_too(data: Data, two_ranks: TwoRanks, tmp_path: Path) -> None:
    tokenizer = data.state("cold", 6).tokenizer
    assert tokenizer is not None
    assert data.state("cold", 6).special_tokens == "text"
    assert tokenizer.startswith(str(data.run_directory("cold")))  # and not where it may be gone one day
    assert data.server.gets["/web/tokenizer.json"] == 2
    assert Path(tokenizer).read_bytes() == (data.words / "tokenizer.json").read_bytes()
    consolidate(data.run_directory("cold"), tmp_path / "exported")
    assert (tmp_path / "exported" / "tokenizer.json").read_bytes() == Path(tokenizer).read_bytes()


def test_a_run_goes_on_with_another_cache(data: Data, alone: Alone) -> None:
    alone.output("cache")
    assert "resuming at step 3 of 6" in alone.output("other cache")
    assert len(list(data.run_directory("web").glob("samples/*.txt"))) == 2


def test_a_run_goes_on_with_data_that_was_moved(data: Data, alone: Alone) -> None:
    alone.output("in place")
    assert "resuming at step 3 of 6" in alone.output("moved")
    assert data.state("moved", 3).tokenizer == str(data.words / "tokenizer.json")
    assert data.state("moved", 6).tokenizer == str(data.directory / "elsewhere" / "tokenizer.json")


def test_shards_that_are_not_those_of_the_data_set_or_the_run_are_named(data: Data, alone: Alone) -> None:
    assert_names(alone.error("missing shard"), data.directory / "missing" / "dataset.json", "train/shard-000001.tar")
    assert_names(alone.error("other shard"), "fingerprint", "train/shard-000001.tar")
    assert_names(alone.error("vocabulary too small"), "data.vocabulary_size", 200, 270)


def test_padding_is_told_at_the_start_and_not_counted(data: Data, two_ranks: TwoRanks, alone: Alone) -> None:
    (warning,) = [line for line in alone.output("short samples").splitlines() if "padding" in line]
    assert_names(warning, data.words, LENGTH, 2 * LENGTH, f"--seq-len {2 * LENGTH}")
    for line in jobs.metrics(data.run_directory("short")).values():
        assert LENGTH / 2 < line["tokens_per_second"] / line["samples_per_second"] <= LENGTH
    skipping = jobs.metrics(data.run_directory("skipping")).values()
    counted = sum(line["tokens_per_second"] / line["steps_per_second"] for line in skipping)
    assert counted == pytest.approx((FAULTY_STEPS * 8 - 3) * LENGTH)


def test_what_is_wrong_with_remote_data_is_told_in_one_line(data: Data, alone: Alone) -> None:
    assert f"{data.server.address}/alone is remote: give cache_directory" in alone.error("no cache")
    message = alone.error("gone")
    assert "/alone/train/shard-00000" in message
    assert "does not exist (status 404)" in message


# sequential


@pytest.mark.parametrize("name", ["compressed", "compressed again", "pipe"])
def test_sequential_streams_train_and_say_that_they_are_inexact(data: Data, alone: Alone, name: str) -> None:
    assert "read from start to end: the stream is inexact" in " ".join(alone.output(name).split())
    run_directory = data.run_directory(name.split()[0])
    assert list(jobs.losses(run_directory)) == [1, 2, 3, 4, 5, 6]
    assert np.isfinite(list(jobs.losses(run_directory).values())).all()


def test_without_sequential_they_are_refused_by_name(data: Data, alone: Alone) -> None:
    message = alone.error("compressed refused")
    assert ".tar.gz is compressed" in message
    assert "data.sequential: true" in message
    message = alone.error("pipe refused")
    assert "pipe:cat" in message
    assert "data.sequential: true" in message
    for name in ("pipe fails", "pipe always fails"):
        assert "shard pipe:cat /nowhere.tar cannot be read: " in alone.error(name)
        assert "its command ended with exit status 1" in alone.error(name)
    assert "its command ended with exit status 3" in alone.error("pipe breaks off")
    assert "no shard train/*.tar.gz in http" in alone.error("no sequential remote")


def test_a_sequential_stream_on_two_ranks(data: Data, two_ranks: TwoRanks) -> None:
    losses = two_ranks.losses("compressed by two")
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    assert losses[6] < losses[1]


def test_faults_in_a_sequential_stream_are_named_or_skipped(data: Data, alone: Alone) -> None:
    keys = [key for key in data.bad if 16 <= int(key) < 32]
    assert any(f"shard-1.tar, sample {key}: {data.bad[key]}" in alone.error("pipe of faults") for key in keys)
    messages = [line for line in alone.output("pipe of skipped").splitlines() if line.startswith("skipped in step ")]
    assert all(any(f"sample {key}: {data.bad[key]}" in line for key in keys) for line in messages)
    assert 0 < data.state("skipped", 6).skipped_samples == len(messages) < 24  # not all at once


# documents


@pytest.mark.parametrize("kind", KINDS)
def test_documents_train_as_in_a_plain_loop(data: Data, two_ranks: TwoRanks, kind: str) -> None:
    index = DatasetIndex.open(data.documents, "train/*.tar")
    order = SampleOrder(index.counts, SEED, 8)
    file, overrides = data.directory / "documents.yaml", [f"objective.kind={kind}"]
    expected = plain_losses(file, overrides, whole_batches(index, order, document_field="documents.npy"))
    assert list(two_ranks.losses(kind).values()) == pytest.approx(expected, rel=2e-5)
    joined = plain_losses(file, overrides, whole_batches(index, order))
    assert list(two_ranks.losses(kind).values()) != pytest.approx(joined, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_evaluated_as_while_training(
    data: Data, two_ranks: TwoRanks, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    consolidate(data.run_directory(kind), tmp_path / "exported")
    wanted = ["--data", str(data.documents), "--output", str(tmp_path / "result.json")]
    assert evaluate(["--checkpoint", str(tmp_path / "exported"), *wanted]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "result.json").read_text())
    (line,) = lines(data.run_directory(kind), "validation_nats_per_token").values()
    assert result["nats_per_token"] == pytest.approx(line["validation_nats_per_token"], rel=1e-4)
    assert result["bits_per_byte"] == pytest.approx(line["validation_bits_per_byte"], rel=1e-4)
