"""What a test does with a command of the documentation: it runs it, smaller, or says why it does not."""

import re
import shlex

# What is added to a command so that it takes a second instead of hours. Nothing else of it is changed, but for
# `deepspeed`: the first launch is real, of as many processes as it says. The others are planned (--dry-run) for as many
# processes as they say; the first of each page, and all of the README, train in one process as well, unless they are
# for more than a few.
FEW_RANKS = 4
SMALLER = {
    "train": "training.steps=2 logging.evaluation_samples=8 schedule.warmup_steps=1",
    "evaluate": "--limit 8",
    "evaluate --report": "--limit 8 --samples 2 --steps 2 --temperatures 1 --training-samples 8",
    "generate": "--length 24",
    "generate --num-samples": "--num-samples 2 --steps 4",
}

# Commands that are not run, by how they begin, and why.
NOT_RUN = {
    r"make( \w|$)": "takes minutes: `make test` is this suite, and its steps are commands of their own",
    r"pip install ": "network; tests/test_package.py does the demo with what it would install",
    r"source \.venv/bin/activate$": "the tests' Python is that of .venv",
    r"(sbatch|job=|prepare=|squeue|scontrol|scancel|touch slurm-stop) ?": "cluster; tests/slurm runs the scripts",
    r"tail -f ": "watches until it is stopped",
    r"python (-m )?benchmarks[./]": "takes minutes; benchmarks/RESULTS.md has the results",
    r"bash benchmarks/gpu\.sh": "GPU; tests/benchmarks rehearses it",
    r"for rate in ": "a loop of the shell over a command that is run",
    r"nar-scale harness ": "the hub's data, or a file with the task's columns; tests/interop runs tasks",
    r"nar-scale .*(s3://|https?://|gs://)": "network",
    r"nar-scale \w+ .*/shared/": "shards of others",
}


def reason_not_to_run(command: str) -> str | None:
    """Why a command is listed instead of run; None if it is run."""
    return next((reason for start, reason in NOT_RUN.items() if re.match(start, command)), None)


def as_run(command: str, launch: bool = False, train: bool = True) -> list[str]:
    """The commands that are run for a command of the documentation.

    Args:
        command: a line of the documentation.
        launch: start the processes of `deepspeed` as it says.
        train: or else train in one process.

    Raises:
        ValueError: it is neither run nor listed.
    """
    command, redirection, standard_input = command.partition(" < ")
    words = shlex.split(command)
    if words[0] == "deepspeed":
        words = [word for word in words if word != "--quiet"]
        ranks = int(words[2]) if words[1] == "--num_accelerators" else 1
        arguments = words[words.index("launcher/train.py") + 1 :]
        if launch:
            return [f"deepspeed --quiet {shlex.join(words[1:])} {SMALLER['train']}"]
        planned = ["nar-scale", "train", *arguments, "--dry-run", "--ranks", str(ranks)]
        trained = f"nar-scale train {shlex.join(arguments)} {SMALLER['train']}"
        return [shlex.join(planned), trained] if train and ranks <= FEW_RANKS else [shlex.join(planned)]
    if words[0] in {"python", ".venv/bin/python"} and words[1].startswith("launcher/"):
        words = ["nar-scale", words[1].removeprefix("launcher/").removesuffix(".py"), *words[2:]]
    if words[0] != "nar-scale":
        raise ValueError(f"{command!r} is neither run nor listed in {__file__}")
    kept = [
        word for word in words if word not in {"--dry-run", "--explain", "--length", "--help", "--status", "--merge"}
    ]
    smaller = [] if len(kept) < len(words) else [value for name, value in SMALLER.items() if _begins(words, name)][-1:]
    return [" ".join([shlex.join(words), *smaller]) + redirection + standard_input]


def _begins(words: list[str], name: str) -> bool:
    command, *option = name.split()
    return words[1] == command and set(option) <= set(words)
