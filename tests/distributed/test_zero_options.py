"""Where ZeRO keeps things, optimizers and batch sizes, on two ranks, against a plain single-process PyTorch loop."""

import itertools
import math
import shutil
from pathlib import Path

import pytest
import torch

from nar_scale.checkpoint import CheckpointStore, consolidate, load_consolidated
from nar_scale.config import Config, batch_size_at, load_config, steps_of_run
from nar_scale.data import Batch
from nar_scale.errors import CheckpointError
from nar_scale.model.parameters import muon_matrices
from nar_scale.objectives import build_wrapper
from nar_scale.planning.report import describe_run
from nar_scale.training.optimizers.build import parameter_groups
from nar_scale.training.optimizers.learning_rate import learning_rate_factor

from . import jobs
from .whole_batches import whole_batches

MUON = ["optimizer.kind=muon", "optimizer.muon_learning_rate=0.01"]
LION = ["optimizer.kind=lion", "optimizer.learning_rate=1e-3"]
SMALL_SUB_GROUPS = ["deepspeed.zero_optimization.sub_group_size=3000"]
WARMUP = "training.batch_size_warmup=[{from_step: 0, global_batch_size: 4}, {from_step: 3, global_batch_size: 8}]"
BF16 = ["training.precision=bf16"]

# at stage 1 DeepSpeed has another optimizer for these
SUMS = [*BF16, *MUON, "training.zero_stage=1", "deepspeed.data_types.grad_accum_dtype=fp32", "training.ema_decay=0.4"]
SUMS += ["schedule.kind=constant", "training.micro_batch_size=1"]

CASES = {
    "offload-2": ["training.zero_stage=2", "zero.offload_optimizer=cpu"],
    "offload-3": ["training.zero_stage=3", "zero.offload_optimizer=cpu"],
    "offload-parameters": ["training.zero_stage=3", "zero.offload_optimizer=cpu", "zero.offload_parameters=cpu"],
    "offload-parameters-alone": ["training.zero_stage=3", "zero.offload_parameters=cpu"],
    "hpz": ["training.zero_stage=3", "zero.hpz_partition_size=2"],
    **{f"muon-{stage}": [*MUON, f"training.zero_stage={stage}"] for stage in (0, 1, 2)},
    "muon-3-sub-groups": [*MUON, "training.zero_stage=3", *SMALL_SUB_GROUPS],
    "muon-offload": [*MUON, "training.zero_stage=2", "zero.offload_optimizer=cpu"],
    "muon-tied-ema": [*MUON, "training.zero_stage=3", "model.tie_embeddings=true", "training.ema_decay=0.4"],
    **{f"lion-{stage}": [*LION, f"training.zero_stage={stage}"] for stage in (0, 3)},
    "warmup": [WARMUP, "training.zero_stage=2"],
    "samples": ["training.steps=null", "training.samples=30", WARMUP, "training.zero_stage=3"],
}
ROUNDED = {
    **{
        f"bf16-masters-{stage}": [*BF16, "training.master_weights=bf16", f"training.zero_stage={stage}"]
        for stage in (1, 2, 3)
    },
    **{f"bf16-muon-{stage}": [*BF16, *MUON, f"training.zero_stage={stage}"] for stage in (0, 1, 3)},
    "bf16-sums": SUMS,
    "bf16-masters-lion": [*BF16, *LION, "training.master_weights=bf16", "training.ema_decay=0.4"],
}
RESUMED = [*MUON, WARMUP, "training.zero_stage=2", "schedule.kind=constant"]


class Plain:
    """The optimizers by their papers, one weight at a time: on the whole gradient, after clipping."""

    def __init__(self, config: Config, wrapper: torch.nn.Module):
        self.settings = config.optimizer
        groups = parameter_groups(wrapper, self.settings.weight_decay)
        self.decay = {name: group["weight_decay"] for group in groups for name, _ in group["params"]}
        self.weights = dict(wrapper.named_parameters())
        self.muon = set(muon_matrices(wrapper)) if self.settings.kind == "muon" else set()
        others = [
            {
                "params": [p for name, p in group["params"] if name not in self.muon],
                "weight_decay": group["weight_decay"],
            }
            for group in groups
        ]
        self.adamw = torch.optim.AdamW(others, betas=self.settings.betas)
        self.averages = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}

    @torch.no_grad()
    def step(self, factor: float) -> None:
        rate = factor * self.settings.learning_rate
        if self.settings.kind == "lion":
            for name in self.weights:
                self.lion(name, rate)
            return
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        for name in self.muon:
            self.orthogonal(name, factor * self.settings.muon_learning_rate)

    def lion(self, name: str, rate: float) -> None:
        weight, average, (beta1, beta2) = self.weights[name], self.averages[name], self.settings.betas
        assert weight.grad is not None
        direction = torch.sign(beta1 * average + (1 - beta1) * weight.grad)
        weight -= rate * (direction + self.decay[name] * weight)
        self.averages[name] = beta2 * average + (1 - beta2) * weight.grad

    def orthogonal(self, name: str, rate: float) -> None:
        weight, momentum = self.weights[name], self.settings.muon_momentum
        assert weight.grad is not None
        average = self.averages[name] = momentum * self.averages[name] + (1 - momentum) * weight.grad
        step = newton_schulz(momentum * average + (1 - momentum) * weight.grad)
        rows, columns = weight.shape
        weight -= rate * (step * math.sqrt(max(1, rows / columns)) + self.decay[name] * weight)


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """By singular values: an odd polynomial of a matrix is that of its singular values."""
    u, s, v = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ v


def plain_batches(config: Config) -> list[Batch]:
    """Global batches of the sizes asked for: cut from the stream one sample at a time."""
    samples = iter(whole_batches(config.model_copy(update={"training": one_sample(config)})))
    return [
        joined(list(itertools.islice(samples, batch_size_at(config.training, step))))
        for step in range(steps_of_run(config))
    ]


def one_sample(config: Config) -> object:
    return config.training.model_copy(update={"global_batch_size": 1})


def joined(samples: list[Batch]) -> Batch:
    names = ("tokens", "lengths", "sample_ids", "epochs", "positions")
    return Batch(*(torch.cat([getattr(sample, name) for sample in samples]) for name in names))


def plain_loop(config_file: Path, overrides: list[str]) -> tuple[list[float], torch.nn.Module]:
    config = load_config(config_file, overrides)
    torch.manual_seed(config.training.seed)
    wrapper = build_wrapper(config, 257)
    optimizer = Plain(config, wrapper)
    losses = []
    for step, batch in enumerate(plain_batches(config)):
        loss = wrapper.loss_terms(batch, seed=config.training.seed).total()
        wrapper.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(wrapper.parameters(), config.optimizer.gradient_clipping)
        optimizer.step(learning_rate_factor(config.schedule, step, steps_of_run(config)))
        losses.append(loss.item())
    return losses, wrapper


class Launch:
    """All runs, in one start of two ranks."""

    def __init__(self, directory: Path, corpus: Path):
        self.directory = directory
        self.config = jobs.write_config(directory / "small.yaml", corpus)
        runs = [*CASES.items(), *ROUNDED.items()]
        runs += [("resumed", [*RESUMED, "training.steps=4"]), ("resumed", RESUMED), ("unbroken", RESUMED)]
        runs += [("bf16-sums-resumed", [*SUMS, "training.steps=4"]), ("bf16-sums-resumed", SUMS)]
        jobs.train_in_one_launch(
            directory,
            *((self.config, [*settings, f"training.run_directory={directory / name}"]) for name, settings in runs),
        )

    def losses(self, name: str) -> list[float]:
        return list(jobs.losses(self.directory / name).values())

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        exported = self.directory / f"exported-{name}"
        if not exported.exists():
            assert consolidate(self.directory / name, exported) < 1e-3
        return {name: weight.detach() for name, weight in load_consolidated(exported).wrapper.named_parameters()}


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Launch:
    return Launch(tmp_path_factory.mktemp("options"), corpus)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_weights_are_those_of_a_plain_loop(launch: Launch, name: str) -> None:
    expected, wrapper = plain_loop(launch.config, CASES[name])
    assert launch.losses(name) == pytest.approx(expected, rel=2e-5)
    assert expected[-1] < expected[0]
    # a step of Lion is of one size, whose sign may turn where an average is next to zero
    expected_weights = {name: weight.detach() for name, weight in wrapper.named_parameters()}
    jobs.assert_near(launch.weights(name), expected_weights, 1e-2 if "lion" in name else 1e-3)


@pytest.mark.parametrize("name", ROUNDED)
def test_in_bfloat16_losses_are_near(launch: Launch, name: str) -> None:
    expected, _ = plain_loop(launch.config, ROUNDED[name])
    assert launch.losses(name) == pytest.approx(expected, rel=1e-2 if "masters" in name else 2e-3)
    assert launch.losses(name)[-1] < launch.losses(name)[0]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_masters_are_all_there_is(launch: Launch, stage: int) -> None:
    for weight in launch.weights(f"bf16-masters-{stage}").values():
        assert bool((weight == weight.bfloat16().float()).all())


@pytest.mark.parametrize(("name", "whole"), [("resumed", "unbroken"), ("bf16-sums-resumed", "bf16-sums")])
def test_a_run_resumed_within_the_warm_up_is_the_unbroken_one(launch: Launch, name: str, whole: str) -> None:
    assert CheckpointStore(launch.directory / name / "checkpoints").steps() == [4, 6]
    assert launch.losses(name) == launch.losses(whole)
    resumed, unbroken = launch.weights(name), launch.weights(whole)
    assert all(torch.equal(resumed[name], weight) for name, weight in unbroken.items())


def test_a_dry_run_looks_at_the_weights_to_start_from(launch: Launch, tmp_path: Path) -> None:
    launch.weights("hpz")
    exported, run = launch.directory / "exported-hpz", launch.directory / "hpz"
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    fresh = f"training.run_directory={tmp_path / 'run'}"
    for source in (exported, checkpoint):
        text = describe_run(load_config(launch.config, [fresh]), 2, source)
        assert f"start:  the weights of {source}, which fit;" in text
        with pytest.raises(CheckpointError, match=r"'net\.\S+'"):
            describe_run(load_config(launch.config, [fresh, "model.feedforward_dim=40"]), 2, source)
        shutil.copytree(source, tmp_path / source.name)
        next((tmp_path / source.name).rglob("*.safetensors")).write_bytes(b"cut short")
        with pytest.raises(CheckpointError, match=rf"--init-from .*{source.name}.* 9 bytes"):
            describe_run(load_config(launch.config, [fresh]), 2, tmp_path / source.name)
    for absent in (tmp_path / "absent", run):
        with pytest.raises(CheckpointError, match=str(absent)):
            describe_run(load_config(launch.config, [fresh]), 2, absent)
    resumed = load_config(launch.config, [f"training.run_directory={run}"])
    assert f"{checkpoint} is resumed, so the weights of anything" in describe_run(resumed, 2, Path("anything"))


ZERO_3 = "training.zero_stage=3"
REFUSED = {
    "round_robin_gradients: checkpoints would take": ["deepspeed.zero_optimization.round_robin_gradients=true"],
    "libaio-dev": [ZERO_3, "zero.offload_optimizer=nvme", "zero.offload_directory=/tmp"],
    "zero.quantized_weights needs a GPU": [ZERO_3, "zero.quantized_weights=true"],
    "zero.quantized_gradients needs a GPU": [ZERO_3, "zero.quantized_gradients=true"],
    "zero.hpz_partition_size 2 does not divide 1 rank": [ZERO_3, "zero.hpz_partition_size=2"],
    "batch_size_warmup from step 0 on: 4 does not divide": [WARMUP, "training.micro_batch_size=8"],
}


def test_what_this_machine_cannot_do_is_refused_in_one_line(corpus: Path, tmp_path: Path) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    config = jobs.write_config(tmp_path / "small.yaml", corpus)
    directory = f"training.run_directory={tmp_path / 'run'}"
    problems = [name for name in REFUSED if name != "libaio-dev" or not AsyncIOBuilder().is_compatible(verbose=False)]
    outcomes = jobs.run_forked(tmp_path, *((config, [*REFUSED[name], directory], "auto") for name in problems))
    for problem, (status, output) in zip(problems, outcomes, strict=True):
        assert status == 2, output
        assert problem in output
        assert len(output.splitlines()) == 1
