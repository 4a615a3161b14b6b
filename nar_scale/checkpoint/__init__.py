"""Checkpoints: the store of a run, the consolidated format, and the way from one to the other."""

from nar_scale.checkpoint.consolidate import EMA, consolidate, consolidate_as_command
from nar_scale.checkpoint.consolidated import (
    CONFIG_FILE,
    MODEL_FILE,
    ConsolidatedWeights,
    LoadedModel,
    ModelInfo,
    WeightKind,
    describe_consolidated,
    load_consolidated,
    load_weights,
)
from nar_scale.checkpoint.partitions import WEIGHT, Partition, PartitionReader, partition_file, write_partitions
from nar_scale.checkpoint.probe import check_probe, compared, run_probe, save_probe
from nar_scale.checkpoint.state import TrainingState
from nar_scale.checkpoint.store import (
    CheckpointStore,
    delete_quarantined,
    list_files,
    quarantine,
    record_files,
    verify_integrity,
)

__all__ = [
    "CONFIG_FILE",
    "EMA",
    "MODEL_FILE",
    "WEIGHT",
    "CheckpointStore",
    "ConsolidatedWeights",
    "LoadedModel",
    "ModelInfo",
    "Partition",
    "PartitionReader",
    "TrainingState",
    "WeightKind",
    "check_probe",
    "compared",
    "consolidate",
    "consolidate_as_command",
    "delete_quarantined",
    "describe_consolidated",
    "list_files",
    "load_consolidated",
    "load_weights",
    "partition_file",
    "quarantine",
    "record_files",
    "run_probe",
    "save_probe",
    "verify_integrity",
    "write_partitions",
]
