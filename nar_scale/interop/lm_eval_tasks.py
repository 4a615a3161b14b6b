"""Tasks of lm-evaluation-harness, run on a model of this library (the extra `lm-eval`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from nar_scale.errors import UserError
from nar_scale.interop.lm_eval import NarScaleLM

_SPLITS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
_KEPT = ("results", "versions", "n-shot", "higher_is_better", "n-samples")


def evaluate_tasks(
    model: NarScaleLM,
    tasks: Sequence[str],
    data_files: Mapping[str, str] | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Run tasks.

    Args:
        model: of any kind.
        tasks: their names.
        data_files: JSON lines of `train`, `validation` and `test`, instead of a single task's data on the Hugging Face
            hub.
        limit: documents of a task, at most.
        num_fewshot: examples before each document; the task's own number if None.
        include_path: a directory with further tasks.
        seed: of the choice of examples.

    Returns:
        the harness's results, for JSON, with `log_likelihoods`: the number of scores, their estimator, and the mean,
        the largest and the total standard error of a score over the choice of masks, in nats.

    Raises:
        UserError: there is no such task, a file does not exist, or there is none to evaluate on.
    """
    manager = _known_tasks(include_path)
    for task in tasks:
        if not manager.match_tasks([task]):
            raise UserError(f"the harness has no task {task!r}")
    first = len(model.scores)
    with TemporaryDirectory() as directory:
        if data_files:
            tasks = [_with_data_files(manager, task, data_files, Path(directory)) for task in tasks]
        results = simple_evaluate(
            model=model,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            num_fewshot=num_fewshot,
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    assert results is not None  # which only other ranks get
    errors = [score.standard_error for score in model.scores[first:]]
    return {
        **{name: results[name] for name in _KEPT if name in results},
        "log_likelihoods": {
            "count": len(errors),
            "estimator": model.estimator,
            "mean_standard_error": sum(errors) / max(len(errors), 1),
            "largest_standard_error": max(errors, default=0.0),
            "total_standard_error": math.sqrt(sum(error * error for error in errors)),
        },
    }


@cache
def _known_tasks(include_path: str | None) -> TaskManager:
    """The harness's tasks and those of a directory; reading some ten thousand files takes seconds."""
    return TaskManager(include_path=include_path)


def _with_data_files(manager: TaskManager, task: str, files: Mapping[str, str], directory: Path) -> str:
    """Describe a task of the harness with other data, in a file whose path stands for the task."""
    if not {"test", "validation"} & set(files) or set(files) - set(_SPLITS):
        raise UserError(
            f"the data of {task} is given for {', '.join(files)}; give test or validation, and train if wanted"
        )
    for file in files.values():
        if not Path(file).is_file():
            raise UserError(f"{file} does not exist; give the task's data as JSON lines")
    source = manager.task_index[task].yaml_path
    if source is None:
        raise UserError(f"the task {task!r} is written in Python, so its data cannot be given as files")
    described = {
        "include": str(source),
        "dataset_path": "json",
        "dataset_name": None,
        "fewshot_split": None,
        **{key: name if name in files else None for name, key in _SPLITS.items()},
        "dataset_kwargs": {"data_files": {split: str(Path(file).resolve()) for split, file in files.items()}},
    }
    path = directory / f"{task}.yaml"
    path.write_text(yaml.safe_dump(described))
    return str(path)
