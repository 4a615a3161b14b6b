"""Mistakes in prompts and in the options of generation."""

from .mistake import Mistake, write

FROM_SCRATCH = "generate --checkpoint nar --output new --num-samples 2"

OPTIONS = {
    "--temperature -1": ("temperature", "-1.0"),
    "--temperature hot": ("--temperature", "hot"),
    "--top-k 0": ("top_k", "0"),
    "--top-k 0.5": ("--top-k", "0.5"),
    "--steps 0": ("steps", "0"),
    "--length 33": ("33", "32"),
    "--length 0": ("length", "0"),
    "--top-p 0": ("top_p", "0.0"),
    "--top-p 1.5": ("top_p", "1.5"),
    "--sampler greedy": ("greedy", "confidence"),
    "--sampler left_to_right": ("left_to_right", "non_autoregressive", "confidence"),
    "--threshold 0.9": ("threshold", "random"),
    "--sampler threshold --threshold 0": ("threshold", "0.0"),
    "--sampler threshold --threshold 1.1": ("threshold", "1.1"),
    "--sampler threshold --factor 2": ("factor", "threshold"),
    "--sampler wino --keep-threshold -1": ("keep_threshold", "-1.0"),
    "--sampler remask --remask-rule loop": ("--remask-rule", "loop", "cap"),
    "--stop ''": ("stop",),
    "--guidance 2": ("guidance",),
    "--worker 2/2": ("--worker", "--output"),
    "--worker one": ("--worker", "one"),
    "--batch-size 0": ("batch", "1"),
    "--part-size 0": ("part", "1"),
    "--weights ema": ("training.ema_decay",),
    "--num-samples 0": ("number", "1"),
    "--num-samples some": ("--num-samples", "some"),
}
PROMPTS = {
    "no JSON": ("text\n", ("1",)),
    "second line": ('{"prompt": "a"}\n{"prompt": \n', ("2",)),
    "no prompt": ('{"instruction": "a"}\n', ("1", "prompt")),
    "a number": ('{"prompt": 3}\n', ("1", "prompt")),
    "a list": ('["a"]\n', ("1",)),
    "prompt and text": ('{"prompt": "a", "text": "b"}\n', ("1", "prompt", "text")),
    "too long": ('{"prompt": "%s"}\n' % ("a" * 40), ("40", "32")),
    "a gap without length": ('{"text": "a <mask:0>"}\n', ("1", "mask:0")),
    "a class": ('{"class": 3}\n', ("1", "class")),
    "nothing": ("", ("prompts.jsonl",)),
    "not UTF-8": (b'{"prompt": "\xff"}\n', ("prompts.jsonl", "UTF-8")),
    "half a surrogate pair": ('{"prompt": "a \\ud83d"}\n', ("1",)),
    "brackets": ("[" * 200_000 + "\n", ("1",)),
    "a gap of a hundred thousand million": ('{"text": "<mask:99999999999>"}\n', ("1", "32")),
}

MISTAKES = {
    **{f"generate: {option}": Mistake(f"{FROM_SCRATCH} {option}", named) for option, named in OPTIONS.items()},
    **{
        f"prompts: {kind}": Mistake(
            "generate --checkpoint nar --output new --on-bad-prompt refuse --prompts prompts.jsonl",
            named,
            write("prompts.jsonl", content),
        )
        for kind, (content, named) in PROMPTS.items()
    },
    "prompts: no file": Mistake("generate --checkpoint nar --output new --prompts nowhere.jsonl", ("nowhere.jsonl",)),
    "prompts: a folder": Mistake("generate --checkpoint nar --output new --prompts data", ("data",)),
    "prompts: gaps for an autoregressive model": Mistake(
        "generate --checkpoint ar --output new --prompts prompts.jsonl",
        ("1", "text"),
        write("prompts.jsonl", '{"text": "a <mask:2>"}\n'),
    ),
    "generate: steps of an autoregressive model": Mistake(
        "generate --checkpoint ar --output new --num-samples 2 --steps 4", ("steps", "left_to_right")
    ),
    "generate: an empty prompt list": Mistake("generate --checkpoint nar --output new --prompt", ("--prompt",)),
    "generate: a prompt that is too long": Mistake(
        f"generate --checkpoint nar --prompt {'a' * 40}", ("prompt 0", "40", "32")
    ),
    "generate: workers without files": Mistake(
        "generate --checkpoint nar --num-samples 2 --worker 0/2", ("--worker", "--output")
    ),
    "generate: watching what is written": Mistake(f"{FROM_SCRATCH} --watch", ("--watch", "--output")),
    "generate: neither prompts nor a number": Mistake(
        "generate --checkpoint nar --output new", ("--prompts", "--num-samples")
    ),
    "generate: both": Mistake(f"{FROM_SCRATCH} --prompts small.yaml", ("--prompts", "--num-samples")),
    "generate: no checkpoint": Mistake("generate --checkpoint nowhere --output new --num-samples 1", ("nowhere",)),
    "generate: a run directory": Mistake(
        "generate --checkpoint run --output new --num-samples 1", ("run", "nar-scale", "consolidate")
    ),
    "generate: output is a file": Mistake(
        "generate --checkpoint nar --output small.yaml --num-samples 1", ("small.yaml",)
    ),
}
