"""Generate from a consolidated checkpoint: from scratch, from prompts, or into gaps.

nar-scale generate --checkpoint exported/quickstart_nar --prompt "def main("
nar-scale generate --checkpoint exported/quickstart_nar --num-samples 1 --watch
nar-scale generate --checkpoint exported/quickstart_nar --output filled --prompts prompts.jsonl

A line of prompts.jsonl is {"prompt": "def main("} or, for a non-autoregressive model, a text with gaps of so many
tokens: {"text": "for i in <mask:8>:"}, or for a model with classes {"class": 3}. An "id" beside them is repeated in the
result. With --output, results are OUTPUT/part-NNNNN.jsonl and, where tokens are pixels, part-NNNNN.png; any number of
workers may share them. In the files a line ends at a line feed alone.

How samples are drawn is what the section `decoding` of the run says, unless it is said here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).resolve().parents[1] / "configs" / "schema.json"
TYPES = {"integer": int, "number": float, "string": str}


def parse_worker(text: str) -> tuple[int, int]:
    """A share of the work, such as 0/8: its number, from 0 on, and how many there are."""
    worker, _, workers = text.partition("/")
    try:
        return int(worker), int(workers)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected I/N, such as 0/8 for the first of eight, not {text!r}") from None


def decoding_settings() -> dict[str, dict[str, Any]]:
    """The settings of all samplers by name, from the schema of `decoding`, which is read in no time.

    Each is a JSON Schema with the `samplers` that have it.
    """
    sections = [each for name, each in json.loads(SCHEMA.read_text())["$defs"].items() if name.endswith("Decoding")]
    settings: dict[str, dict[str, Any]] = {}
    for section in sections:
        sampler = section["properties"]["sampler"]["const"]
        for name, setting in section["properties"].items():
            if sampler != "auto":
                settings.setdefault(name, {**setting, "samplers": []})["samplers"].append(sampler)
    return settings


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """An option for each setting of each sampler."""
    settings = decoding_settings()
    samplers = settings.pop("sampler")["samplers"]
    group = parser.add_argument_group("decoding", "default of each: what the run says, or the sampler's own default")
    group.add_argument("--sampler", metavar="NAME", choices=samplers, help=f"one of {', '.join(samplers)}")
    for name, setting in settings.items():
        kinds = [setting, *setting.get("anyOf", [])]
        kind = next(each["type"] for each in kinds if "type" in each)
        owners = "" if setting["samplers"] == samplers else f" (samplers {', '.join(setting['samplers'])})"
        options: dict[str, Any] = {"help": (setting["description"] + owners).replace("%", "%%"), "dest": name}
        if kind == "array":
            options |= {"action": "append", "metavar": "TEXT"}
        elif "enum" in setting:
            options["choices"] = setting["enum"]
        elif kind == "boolean":
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": TYPES[kind], "metavar": "N" if kind == "integer" else "X"}
        group.add_argument(f"--{name.replace('_', '-')}", **options)


def describe(result: dict[str, Any]) -> str:
    """A result for the terminal: a line about it, and the text with its prompt, or else the tokens."""
    if "error" in result:
        return f"--- {result['number']}: {result['error']}"
    prompt, text = result.get("prompt", ""), result.get("generated", " ".join(map(str, result["tokens"])))
    asked = f"class {result['class']}, " if "class" in result else ""
    head = f"--- {result['number']} ({asked}{result['network_calls']} network calls)"
    return f"{head}\n{text if text.startswith(prompt) else prompt + text}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments of the command, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a consolidated checkpoint")
    parser.add_argument(
        "--output", metavar="DIR", help="where results go, finished parts are kept (default: the terminal)"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prompt", action="append", metavar="TEXT", help="what to continue; may be given several times"
    )
    source.add_argument("--prompts", metavar="FILE.jsonl", help="what to continue or fill in; - for the standard input")
    source.add_argument("--num-samples", type=int, metavar="N", help="generate so many sequences from scratch")
    parser.add_argument(
        "--on-bad-prompt",
        default="refuse",
        choices=["refuse", "skip"],
        help="skip: its result is an error, and the others are generated (default: refuse them all)",
    )
    parser.add_argument("--length", type=int, metavar="N", help="tokens of a sequence, prompt included")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness (default: 0)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="sequences at a time (default: 16)")
    parser.add_argument("--part-size", type=int, default=64, metavar="N", help="samples in a file (default: 64)")
    parser.add_argument("--worker", type=parse_worker, default=(0, 1), metavar="I/N", help="do share I of N, from 0")
    parser.add_argument(
        "--weights", default="model", choices=["model", "ema"], help="ema: the moving average (default: model)"
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--print", action="store_true", help="with --output: show the results on the terminal too")
    parser.add_argument("--watch", action="store_true", help="show each text while it is generated, one after another")
    add_decoding_options(parser)
    options = parser.parse_args(arguments)
    if options.watch and options.output is not None:
        parser.error("--watch shows results instead of writing them; leave --output out")
    if options.output is None and options.worker != (0, 1):
        parser.error("workers share the files of --output; give it, or leave --worker out")
    return options


def show(options: argparse.Namespace, requests: Any, sampling: Any) -> None:
    """Print each result as soon as it is there."""
    from nar_scale.generation import LiveText, generate_directly
    from nar_scale.logging_setup import write_result

    views: list[LiveText] = []

    def watch_with(model: Any) -> LiveText:
        views.append(LiveText(model, sys.stdout))
        return views[0]

    results = generate_directly(
        options.checkpoint,
        requests,
        sampling,
        batch_size=options.batch_size,
        device=options.device,
        weights=options.weights,
        skip_faults=options.on_bad_prompt == "skip",
        watch_with=watch_with if options.watch else None,
    )
    for result in results:
        for view in views:
            view.clear()
        write_result(describe(result))


def write(options: argparse.Namespace, requests: Any, sampling: Any) -> None:
    """Write this worker's results to files, and say where they are."""
    from nar_scale.generation import generate, read_results
    from nar_scale.logging_setup import write_result

    parts = generate(
        options.checkpoint,
        options.output,
        requests,
        sampling,
        worker=options.worker[0],
        workers=options.worker[1],
        batch_size=options.batch_size,
        part_size=options.part_size,
        device=options.device,
        weights=options.weights,
        skip_faults=options.on_bad_prompt == "skip",
    )
    results: Iterable[dict[str, Any]] = read_results(parts) if options.print else []
    pictures = [str(picture) for part in parts if (picture := part.with_suffix(".png")).exists()]
    write_result("\n".join([*map(describe, results), *pictures, f"{len(parts)} part(s) in {options.output}"]))


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit status."""
    options = parse(arguments)

    # after the arguments have been checked: it takes seconds
    from nar_scale.errors import UserError
    from nar_scale.generation import SamplingOptions, prompts_to_continue, read_requests, samples_from_scratch
    from nar_scale.logging_setup import set_up_logging

    set_up_logging()
    try:
        if options.prompt is not None:
            requests = prompts_to_continue(options.prompt)
        elif options.prompts is not None:
            requests = read_requests(options.prompts)
        else:
            requests = samples_from_scratch(options.num_samples)
        given = {name: getattr(options, name) for name in decoding_settings()}
        settings = {name: value for name, value in given.items() if value is not None and name != "sampler"}
        sampling = SamplingOptions(
            sampler=options.sampler, sampler_options=settings, length=options.length, seed=options.seed
        )
        (show if options.output is None else write)(options, requests, sampling)
    except UserError as error:
        print(f"generate: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"generate: error: cannot write the standard output: {error.strerror}", file=sys.stderr)
        return 2
    return 0
