"""Checkpoints: the store of a run, the consolidated format, and the way from one to the other."""

from nar_scale.checkpoint.consolidate import TrainingState, consolidate
from nar_scale.checkpoint.exported import (
    CONFIG_FILE,
    DecodeManifest,
    LoadedModel,
    ModelInfo,
    describe_decoding,
    load_exported,
)
from nar_scale.checkpoint.probe import check_probe, run_probe, save_probe
from nar_scale.checkpoint.store import CheckpointStore, find_damage, list_files, record_files
from nar_scale.checkpoint.zero import WeightKind

__all__ = [
    "CONFIG_FILE",
    "CheckpointStore",
    "DecodeManifest",
    "LoadedModel",
    "ModelInfo",
    "TrainingState",
    "WeightKind",
    "check_probe",
    "consolidate",
    "describe_decoding",
    "find_damage",
    "list_files",
    "load_exported",
    "record_files",
    "run_probe",
    "save_probe",
]
