"""The model that a worker draws samples from: one checkpoint, or the newest of a run that goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch

from nar_scale.checkpoint import MODEL_FILE, LoadedModel, WeightKind, describe_consolidated, load_weights
from nar_scale.errors import CheckpointError, UserError

_logger = logging.getLogger(__name__)
_STEP_NAME = re.compile(r"step-(\d+)")


class FixedModel:
    """The model of one consolidated checkpoint.

    Args:
        checkpoint: its directory.
        weights: `model` or `ema`.
        device: where the weights are loaded to.

    Attributes:
        name: is in each result; None where all results have the same checkpoint.
        described: the model without its weights.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """

    name: str | None = None

    def __init__(self, checkpoint: Path, weights: WeightKind, device: torch.device) -> None:
        self._checkpoint, self._weights, self._device = checkpoint, weights, device
        self.described = describe_consolidated(checkpoint)
        self._loaded = False

    def record(self) -> dict[str, Any]:
        """What the results depend on."""
        content = (self._checkpoint / "manifest.json").read_bytes()
        model = {"step": self.described.info.step, "schedule": self.described.info.decode.schedule}
        return {"checkpoint": hashlib.blake2b(content, digest_size=16).hexdigest(), "model": model}

    def current(self) -> LoadedModel:
        """The model with its weights.

        Raises:
            CheckpointError: they cannot be loaded.
        """
        if not self._loaded:
            load_weights(self.described, self._checkpoint, self._device, kind=self._weights)
            self._loaded = True
        return self.described


class FollowedModel:
    """The newest consolidated checkpoint of a run, whichever that is when a unit is begun.

    Args:
        directory: of the checkpoints, `RUN/consolidated`.
        weights: `model` or `ema`.
        device: where the weights are loaded to.

    Attributes:
        name: of the checkpoint that was loaded last.
        described: the newest model at the start, without its weights.

    Raises:
        UserError: there is no checkpoint yet.
        CheckpointError: the newest is damaged.
    """

    def __init__(self, directory: Path, weights: WeightKind, device: torch.device) -> None:
        self._directory, self._weights, self._device = directory, weights, device
        newest = self._newest()
        if newest is None:
            raise UserError(
                f"{directory} holds no consolidated checkpoints (step-NNNNNNNNN) yet; start again when the run has "
                "published one (checkpoint.consolidate_every)"
            )
        self.name, self.described = newest, describe_consolidated(directory / newest)
        self._identity = _identity(self.described)
        self._model: LoadedModel | None = None
        self._refused: set[str] = set()

    def record(self) -> dict[str, Any]:
        """What all results have in common: the configuration of the net, whose weights change."""
        content = json.dumps(self._identity, sort_keys=True).encode()
        return {
            "checkpoint": {"followed": True, "model": hashlib.blake2b(content, digest_size=16).hexdigest()},
            "model": {"schedule": self.described.info.decode.schedule},
        }

    def current(self) -> LoadedModel:
        """The newest model with its weights; one that cannot be loaded is left out, with a warning.

        Raises:
            CheckpointError: not even the first one can be loaded.
        """
        newest = self._newest()
        if self._model is None:
            self._load(self.described, self.name)
        if newest is not None and newest != self.name and newest not in self._refused:
            self._take_up(newest)
        assert self._model is not None
        return self._model

    def _take_up(self, newest: str) -> None:
        before, loaded = self.name, self._model
        try:
            described = describe_consolidated(self._directory / newest)
            if _identity(described) != self._identity:
                raise CheckpointError(f"{self._directory / newest} is of another model")
            self._load(described, newest)
            _logger.info("took up the checkpoint %s after %s", newest, before)
        except CheckpointError as error:
            self._refused.add(newest)
            self.name, self._model = before, loaded
            _logger.warning("%s; going on with %s", error, before)

    def _load(self, described: LoadedModel, name: str) -> None:
        load_weights(described, self._directory / name, self._device, kind=self._weights)
        self.name, self._model = name, described

    def _newest(self) -> str | None:
        steps = {
            int(match[1]): path.name
            for path in self._directory.glob("step-*")
            if (match := _STEP_NAME.fullmatch(path.name)) and (path / MODEL_FILE).exists()
        }
        return steps[max(steps)] if steps else None


Models = FixedModel | FollowedModel


def _identity(model: LoadedModel) -> dict[str, Any]:
    """What must not change from one checkpoint of a run to the next."""
    return {
        "model": model.config.model.model_dump(mode="json"),
        "objective": model.config.objective.model_dump(mode="json"),
        "vocabulary_size": model.info.vocabulary_size,
        "tokenizer": model.info.tokenizer,
        "decode": model.info.decode.model_dump(mode="json"),
    }
