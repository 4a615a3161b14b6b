"""Run tasks of EleutherAI's lm-evaluation-harness on a consolidated checkpoint of any kind.

nar-scale harness --checkpoint exported/quickstart_ar --tasks arc_easy lambada_openai --output harness.json

Without network, a task's data comes from files: --data-files test=arc.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from nar_scale.commands.process import Parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a consolidated checkpoint")
    parser.add_argument("--tasks", required=True, nargs="+", metavar="TASK", help="names of tasks of the harness")
    parser.add_argument("--output", required=True, metavar="FILE.json", help="where the results go")
    parser.add_argument(
        "--data-files",
        nargs="+",
        default=[],
        metavar="SPLIT=FILE",
        help="the data of the task, as JSON lines, instead of that of the Hugging Face hub",
    )
    parser.add_argument("--include-path", metavar="DIR", help="with further tasks")
    parser.add_argument("--limit", type=int, metavar="N", help="documents of a task, at most")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each document")
    parser.add_argument("--mask-samples", type=int, default=128, metavar="N", help="of a bound (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="of masks and generation (default: 0)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="sequences at a time (default: 64)")
    parser.add_argument(
        "--weights", default="model", choices=["model", "ema"], help="ema: the moving average (default: model)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    options = parser.parse_args(arguments)
    if any("=" not in text for text in options.data_files):
        parser.error("--data-files takes SPLIT=FILE, such as test=arc.jsonl")
    if options.data_files and len(options.tasks) > 1:
        parser.error("--data-files is the data of one task; run others on their own")

    if not sys.stderr.isatty():  # libraries read it while they are imported; ours know by themselves
        os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

    # after the arguments have been checked: it takes seconds
    from nar_scale.errors import UserError
    from nar_scale.files import write_atomically
    from nar_scale.logging_setup import report_error, set_up_logging, write_result
    from nar_scale.progress import kept_at_interrupt

    set_up_logging()
    try:
        try:
            from nar_scale.interop.lm_eval import NarScaleLM
            from nar_scale.interop.lm_eval_tasks import evaluate_tasks
        except ModuleNotFoundError as error:
            raise UserError(
                f"the harness is an optional package ({error.name}): pip install 'nar_scale[lm-eval]'"
            ) from error
        with kept_at_interrupt(f"{options.output} was not written"):
            model = NarScaleLM(
                options.checkpoint,
                options.device,
                options.weights,
                options.batch_size,
                options.mask_samples,
                options.seed,
            )
            files = dict(text.split("=", 1) for text in options.data_files)
            results = evaluate_tasks(
                model, options.tasks, files, options.limit, options.num_fewshot, options.include_path, options.seed
            )
        results["checkpoint"] = options.checkpoint
        write_atomically(Path(options.output), f"{json.dumps(results, indent=2)}\n".encode())
    except UserError as error:
        return report_error("harness", error)
    except OSError as error:
        return report_error("harness", f"{error.filename or options.output}: {error.strerror}")
    write_result("\n".join(f"{task}: {_describe(values)}" for task, values in results["results"].items()))
    return 0


def _describe(values: dict[str, Any]) -> str:
    """The metrics of a task in a line."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return ", ".join(f"{name.removesuffix(',none')} {value:.4g}" for name, value in numbers.items())
