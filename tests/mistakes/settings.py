"""Mistakes in the YAML file and in overrides."""

from .mistake import Mistake, write

TRAIN = "train --config small.yaml"

OVERRIDES = {
    "training.stesp=3": ("training.stesp", "training.steps"),
    "steps=3": ("steps=3", "section.key=value"),
    "training.tokens=64": ("steps", "samples", "tokens"),
    "training.steps=many": ("training.steps", "many"),
    "training.steps=0": ("training.steps", "0"),
    "training.steps=-1": ("training.steps", "-1"),
    "training.steps": ("training.steps", "section.key=value"),
    "optimiser.kind=lion": ("optimiser", "optimizer"),
    "optimizer.kind=sgd": ("optimizer.kind", "sgd", "adamw"),
    "optimizer.muon_momentum=0.9": ("optimizer.muon_momentum", "muon"),
    "optimizer.learning_rate=-1": ("optimizer.learning_rate", "-1"),
    "optimizer.learning_rate=1e": ("optimizer.learning_rate", "1e"),
    "optimizer.betas=[0.9]": ("optimizer.betas",),
    "schedule.kind=linear": ("schedule.kind", "linear", "cosine"),
    "objective.kind=nar": ("objective.kind", "nar", "non_autoregressive"),
    "objective.schedule=cosin": ("objective.schedule", "cosin", "cosine"),
    "objective.mask_prob=0.2": ("objective.mask_prob", "autoregressive"),
    "objective.no_replace_prob=2": ("objective.no_replace_prob", "2"),
    "model.heads=3": ("dim", "32", "heads", "3"),
    "model.dim=0": ("model.dim", "0"),
    "model.depth=1.5": ("model.depth", "1.5"),
    "model.dropout=1.0": ("model.dropout", "1.0"),
    "model.attention_kernel=flash": ("model.attention_kernel", "flash", "sdpa"),
    "training.micro_batch_size=4": ("training.micro_batch_size", "4", "8"),
    "training.global_batch_size=0": ("training.global_batch_size", "0"),
    "training.precision=fp8": ("training.precision", "fp8", "bf16"),
    "training.precision=fp16": ("training.precision", "fp16", "GPU"),
    "training.zero_stage=4": ("training.zero_stage", "4"),
    "training.sequence_parallel_size=2": ("training.sequence_parallel_size", "2"),
    "training.ema_decay=1.5": ("training.ema_decay", "1.5"),
    "zero.offload_parameters=cpu": ("zero.offload_parameters",),
    "checkpoint.every=0": ("checkpoint.every", "0"),
    "checkpoint.keep_last=0": ("checkpoint.keep_last", "0"),
    "logging.flops_step=70": ("logging.flops_step", "70"),
    "logging.profile_steps=[3,1]": ("logging.profile_steps",),
    "logging.evaluate_every=2": ("logging.evaluate_every", "data.validation"),
    "faults.on_non_finite=ignore": ("faults.on_non_finite", "ignore", "stop"),
    "deepspeed.optimizer.type=Adam": ("deepspeed.optimizer", "optimizer"),
    "deepspeed.train_batch_size=4": ("deepspeed.train_batch_size", "training.global_batch_size"),
    "deepspeed.zero_optimization.stages=1": ("deepspeed.zero_optimization.stages", "stage"),
    "deepspeed.gradient_clipping=no": ("deepspeed.gradient_clipping",),
    "deepspeed.zero_optimization.zenflow={topk_ratio: 0.1}": ("DeepSpeed", "Zenflow"),
    "deepspeed.data_efficiency={enabled: true, data_routing: {enabled: true, random_ltd: {enabled: true}}}": (
        "DeepSpeed",
        "total_layer_num",
    ),
}

FILES = {
    "no file": (None, "absent.yaml", ("absent.yaml",)),
    "a tab": ("model:\n\tdim: 3\n", "bad.yaml", ("bad.yaml", "2")),
    "an open bracket": ("model: {dim: 3\n", "bad.yaml", ("bad.yaml",)),
    "a list": ("- model\n", "bad.yaml", ("bad.yaml",)),
    "empty": ("", "bad.yaml", ("bad.yaml",)),
    "bytes": (b"\xff\xfe\x00", "bad.yaml", ("bad.yaml", "UTF-8")),
    "an object of Python": ("model: !!python/object/apply:os.system ['touch evil']\n", "bad.yaml", ("bad.yaml",)),
    "a key twice": ("model: {dim: 8, dim: 16}\n", "bad.yaml", ("bad.yaml", "dim")),
    "sections left out": ("model: {dim: 32}\n", "bad.yaml", ("model.depth", "objective", "training")),
}

MISTAKES = {
    **{f"override {override}": Mistake(f"{TRAIN} '{override}'", named) for override, named in OVERRIDES.items()},
    **{
        f"YAML: {kind}": Mistake(f"train --config {name}", named, None if content is None else write(name, content))
        for kind, (content, name, named) in FILES.items()
    },
    "a folder as config": Mistake("train --config data", ("data",)),
    "explain an unknown key": Mistake("train --explain optimizer.kid", ("optimizer.kid", "optimizer.kind")),
    "dry run with resume": Mistake(f"{TRAIN} --dry-run --resume never", ("--dry-run", "--resume")),
    "no ranks": Mistake(f"{TRAIN} --ranks 0", ("--ranks", "0")),
    "no config": Mistake("train", ("--config",)),
    "an unknown option": Mistake(f"{TRAIN} --resume-from run", ("--resume-from",)),
}
