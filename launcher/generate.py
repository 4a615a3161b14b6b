"""Generate from a consolidated checkpoint: from scratch, from prompts, or into gaps.

python launcher/generate.py --checkpoint exported/quickstart_nar --output samples --num-samples 4
python launcher/generate.py --checkpoint exported/quickstart_nar --output filled --prompts prompts.jsonl

A line of prompts.jsonl is {"prompt": "def main("} or, for a non-autoregressive model, a text with gaps of so many
tokens: {"text": "for i in <mask:8>:"}, or for a model with classes {"class": 3}. An "id" beside them is repeated in the
result. Results are OUTPUT/part-NNNNN.jsonl and, where tokens are pixels, part-NNNNN.png. In both files a line ends at a
line feed alone.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any


def parse_worker(text: str) -> tuple[int, int]:
    worker, _, workers = text.partition("/")
    try:
        return int(worker), int(workers)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected I/N, such as 0/8 for the first of eight, not {text!r}") from None


def describe(result: dict[str, Any]) -> str:
    """A result for the terminal: a line about it, and the text with its prompt, or else the tokens."""
    if "error" in result:
        return f"--- {result['number']}: {result['error']}"
    prompt, text = result.get("prompt", ""), result.get("generated", " ".join(map(str, result["tokens"])))
    asked = f"class {result['class']}, " if "class" in result else ""
    head = f"--- {result['number']} ({asked}{result['network_calls']} network calls)"
    return f"{head}\n{text if text.startswith(prompt) else prompt + text}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a consolidated checkpoint")
    parser.add_argument("--output", required=True, metavar="DIR", help="where the results go; finished parts are kept")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompts", metavar="FILE.jsonl", help="what to continue or fill in")
    source.add_argument("--num-samples", type=int, metavar="N", help="generate so many sequences from scratch")
    parser.add_argument(
        "--on-bad-prompt",
        default="refuse",
        choices=["refuse", "skip"],
        help="skip: its result is an error, and the others are generated (default: refuse them all)",
    )
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default: the run's)")
    parser.add_argument("--top-k", type=int, metavar="N", help="only the N most probable tokens (default: the run's)")
    parser.add_argument("--sampler", metavar="NAME", help="see decoding.sampler in docs/config.md (default: the run's)")
    parser.add_argument("--steps", type=int, metavar="N", help="non-autoregressive: network calls (default: the run's)")
    parser.add_argument(
        "--guidance", type=float, metavar="X", help="scale of classifier-free guidance, 1 for none (default: the run's)"
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
    parser.add_argument("--print", action="store_true", help="show the results on the terminal too")
    options = parser.parse_args(arguments)

    # after the arguments have been checked: it takes seconds
    from nar_scale.errors import UserError
    from nar_scale.generation import SamplingOptions, generate, read_requests, read_results, samples_from_scratch
    from nar_scale.logging_setup import set_up_logging, write_result

    set_up_logging()
    try:
        from_scratch = options.prompts is None
        requests = samples_from_scratch(options.num_samples) if from_scratch else read_requests(options.prompts)
        parts = generate(
            options.checkpoint,
            options.output,
            requests,
            SamplingOptions(
                temperature=options.temperature,
                sampler=options.sampler,
                steps=options.steps,
                top_k=options.top_k,
                guidance=options.guidance,
                length=options.length,
                seed=options.seed,
            ),
            worker=options.worker[0],
            workers=options.worker[1],
            batch_size=options.batch_size,
            part_size=options.part_size,
            device=options.device,
            weights=options.weights,
            skip_faults=options.on_bad_prompt == "skip",
        )
        results = read_results(parts) if options.print else []
        write_result("\n".join([*map(describe, results), f"{len(parts)} part(s) in {options.output}"]))
    except UserError as error:
        print(f"generate: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"generate: error: cannot write the standard output: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    from _command import run

    sys.exit(run(main))
