"""Generate from a consolidated checkpoint: from scratch, from prompts, or into gaps.

nar-scale generate --checkpoint exported/quickstart_nar --prompt "def main("
nar-scale generate --checkpoint exported/quickstart_nar --watch
nar-scale generate --checkpoint exported/quickstart_nar --output filled --prompts prompts.jsonl

A line of prompts.jsonl is {"prompt": "def main("} or, for a non-autoregressive model, a text with gaps of so many
tokens: {"text": "for i in <mask:8>:"}, or for a model with classes {"class": 3}. An "id" beside them is repeated in the
result. With --output, results are OUTPUT/part-NNNNN.jsonl and, where tokens are pixels, part-NNNNN.png. In the files a
line ends at a line feed alone.

Any number of workers share the parts of an --output: start the same command as often as you like, on any hosts, and
again after any of them was killed. One that is asked to stop (SIGTERM, SIGINT, SIGUSR1) commits what it has made and
ends with status 85. docs/fleet.md says more.

nar-scale generate --status filled
nar-scale generate --merge filled --output filled.jsonl

How samples are drawn is what the section `decoding` of the run says, unless it is said here.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nar_scale.commands.process import Parser
from nar_scale.text import counted, quoted

SCHEMA = Path(__file__).resolve().parents[1] / "configs" / "schema.json"
TYPES = {"integer": int, "number": float, "string": str}


def parse_batch_size(text: str) -> int | str:
    """A number of sequences, or `auto`."""
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or auto, not {text!r}") from None


class FormerWorkerOption(argparse.Action):
    """Refuses `--worker I/N`, by which the parts were once shared out beforehand."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """End with an error that says what to do instead."""
        parser.error(
            "--worker is no more: workers claim the parts of --output one by one; leave it out, and start the same "
            "command as often as you like"
        )


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
    asked = f"class {result['class']}, " if "class" in result else f"after {quoted(prompt, 40)}, " if prompt else ""
    head = f"--- {result['number']} ({asked}{counted(result['network_calls'], 'network call')})"
    return f"{head}\n{text if text.startswith(prompt) else prompt + text}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments of the command, checked."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what to do", "one of these")
    what.add_argument("--checkpoint", metavar="DIR", help="a consolidated checkpoint")
    what.add_argument(
        "--follow",
        metavar="RUN/consolidated",
        help="the newest consolidated checkpoint of a run, and newer ones once they are published; results name theirs",
    )
    what.add_argument("--status", metavar="DIR", help="tell how far the workers on DIR are; status 1 until all is done")
    what.add_argument("--merge", metavar="DIR", help="write the results in DIR to --output, in order, with a manifest")
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="where results go, finished parts are kept (default: the terminal); of --merge, FILE.jsonl or a directory "
        "of WebDataset shards",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="what to continue, or to fill in the gaps of (<mask:8>); may be given several times",
    )
    source.add_argument(
        "--prompts",
        metavar="FILE.jsonl",
        help="what to continue or fill in; - for the standard input; or WebDataset shards: a .tar, or their directory",
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        metavar="N",
        help="generate so many sequences from scratch, or of each --prompt (default without --output: 1)",
    )
    parser.add_argument(
        "--on-bad-prompt",
        choices=["refuse", "skip"],
        help="skip: its result is an error, and the others are generated; refuse: all prompts are looked at first, and "
        "none is generated if one is bad (default: skip with --output, unless none of the first part can be used; else "
        "refuse)",
    )
    parser.add_argument("--length", type=int, metavar="N", help="tokens of a sequence, prompt included")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness (default: 0)")
    parser.add_argument(
        "--batch-size",
        type=parse_batch_size,
        default=16,
        metavar="N",
        help="sequences at a time, or auto: by memory on a GPU, by measurement on a CPU (default: 16)",
    )
    parser.add_argument(
        "--part-size",
        type=int,
        metavar="N",
        help="samples in a file, which one worker claims at a time (default: 64; of the shards of --merge: 10000)",
    )
    parser.add_argument(
        "--format",
        default="jsonl",
        choices=["jsonl", "shards"],
        help="shards: parts are WebDatasets (default: jsonl)",
    )
    parser.add_argument(
        "--lease", type=float, default=60.0, metavar="SECONDS", help="after which a silent worker is gone (default: 60)"
    )
    parser.add_argument("--worker", action=FormerWorkerOption, help=argparse.SUPPRESS)
    parser.add_argument(
        "--weights", default="model", choices=["model", "ema"], help="ema: the moving average (default: model)"
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--print", action="store_true", help="with --output: show the results on the terminal too")
    parser.add_argument("--watch", action="store_true", help="show each text while it is generated, one after another")
    add_decoding_options(parser)
    options = parser.parse_args(arguments)
    check(parser, options)
    return options


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with an error where options do not go together."""
    if [options.checkpoint, options.follow, options.status, options.merge].count(None) != 3:
        parser.error("one of the arguments --checkpoint --follow --status --merge is required")
    sources = (options.prompt, options.prompts, options.num_samples)
    generates = options.status is None and options.merge is None
    if generates and sources == (None, None, None):
        if options.output is not None:
            parser.error("one of the arguments --prompt --prompts --num-samples is required with --output")
        options.num_samples = 1
    if options.prompts is not None and options.num_samples is not None:
        parser.error("--num-samples is not for --prompts, whose lines have one result each")
    if options.num_samples is not None and options.num_samples < 1:
        parser.error(f"--num-samples takes a number from 1 on, not {options.num_samples}")
    if not generates and sources != (None, None, None):
        parser.error("--status and --merge take no prompts")
    if options.merge is not None and options.output is None:
        parser.error("--merge needs --output: FILE.jsonl, or a directory of shards")
    if options.watch and options.output is not None:
        parser.error("--watch shows results instead of writing them; leave --output out")
    if generates and options.output is None and (options.follow is not None or options.batch_size == "auto"):
        parser.error("--follow and --batch-size auto are for workers; give --output")
    if options.lease <= 0:
        parser.error("--lease must be more than 0 seconds")


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


def write(options: argparse.Namespace, requests: Any, sampling: Any, stop: Any) -> None:
    """Work on the results in files until all are there, and say where they are."""
    from nar_scale.generation import generate, read_results
    from nar_scale.logging_setup import write_result

    parts = generate(
        options.checkpoint or options.follow,
        options.output,
        requests,
        sampling,
        batch_size=options.batch_size,
        part_size=64 if options.part_size is None else options.part_size,
        device=options.device,
        weights=options.weights,
        skip_faults=None if options.on_bad_prompt is None else options.on_bad_prompt == "skip",
        format=options.format,
        follow=options.follow is not None,
        lease_seconds=options.lease,
        stop=lambda: bool(stop),
    )
    results: Iterable[dict[str, Any]] = read_results(parts) if options.print else []
    pictures = [str(picture) for part in parts if (picture := part.with_suffix(".png")).exists()]
    write_result("\n".join([*map(describe, results), *pictures, f"{len(parts)} part(s) in {options.output}"]))


def tell_status(options: argparse.Namespace) -> int:
    """Say how far the work is; the exit status is 1 until it is done."""
    from nar_scale.fleet import read_status
    from nar_scale.logging_setup import write_result

    status = read_status(Path(options.status))
    write_result(f"{options.status}: {status}")
    return 0 if status.complete else 1


def merge_parts(options: argparse.Namespace) -> int:
    """Write all results in order."""
    from nar_scale.fleet import merge
    from nar_scale.fleet.merge import SAMPLES_PER_SHARD
    from nar_scale.logging_setup import write_result

    manifest = merge(Path(options.merge), Path(options.output), options.part_size or SAMPLES_PER_SHARD)
    files = f"{len(manifest['files'])} file(s)"
    write_result(f"{manifest['count']} results, {manifest['errors']} of them errors, in {options.output}, {files}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit status."""
    options = parse(arguments)

    # after the arguments have been checked: it takes time
    from nar_scale.cluster.endings import NO_RESULT_YET, Kind, report
    from nar_scale.errors import UserError
    from nar_scale.fleet import Stopped, StopSignals
    from nar_scale.logging_setup import report_error, set_up_logging
    from nar_scale.processes import RESUMABLE_EXIT_STATUS

    set_up_logging()
    try:
        if options.status is not None:
            return tell_status(options)
        if options.merge is not None:
            return merge_parts(options)
        if options.output is None:
            show(options, *what_to_generate(options))
            return 0
        report(Kind.RUNNING)
        with StopSignals() as stop:  # from now on: loading the model takes seconds
            write(options, *what_to_generate(options), stop)
        report(Kind.COMPLETE)
    except Stopped as stopped:
        report(Kind.STOPPED, "" if stopped.made else NO_RESULT_YET)
        logging.getLogger(__name__).warning("generate: stopped; the same command goes on")
        return RESUMABLE_EXIT_STATUS
    except UserError as error:
        report(Kind.USER_ERROR, str(error))
        return report_error("generate", error)
    except OSError as error:
        report(Kind.ERROR, str(error))
        return report_error("generate", f"cannot write the standard output: {error.strerror}")
    except Exception as error:
        report(Kind.ERROR, f"{type(error).__name__}: {error}".splitlines()[0])
        raise
    return 0


def what_to_generate(options: argparse.Namespace) -> tuple[Any, Any]:
    """The requests, and how samples are drawn."""
    from nar_scale.generation import (
        SamplesFromScratch,
        SamplingOptions,
        open_requests,
        read_requests,
        requests_for,
        samples_from_scratch,
    )

    in_files = options.output is not None
    requests: Any
    if options.prompt is not None:
        requests = requests_for([each for each in options.prompt for _ in range(options.num_samples or 1)])
    elif options.prompts is not None:
        requests = (open_requests if in_files else read_requests)(options.prompts)
    else:
        requests = (SamplesFromScratch if in_files else samples_from_scratch)(options.num_samples)
    given = {name: getattr(options, name) for name in decoding_settings()}
    settings = {name: value for name, value in given.items() if value is not None and name != "sampler"}
    sampling = SamplingOptions(
        sampler=options.sampler, sampler_options=settings, length=options.length, seed=options.seed
    )
    return requests, sampling
