"""The model card: what people read first about a model, in Markdown with the fields that Hugging Face reads."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import nn

from nar_scale.checkpoint.consolidated import ModelInfo, RecordedLikelihood
from nar_scale.config import Config
from nar_scale.text import printable

METRICS_FILE = "metrics.jsonl"  # of a run, which may be gone or damaged: the card then says less
UNKNOWN = "unknown"
"""What Hugging Face calls a licence that nobody has named."""

_VALIDATION = re.compile(r"validation_(?:(?P<source>.+)_)?nats_per_token")
_KINDS = {
    "autoregressive": ("an autoregressive", "autoregressive"),
    "non_autoregressive": ("a non-autoregressive (masked diffusion)", "masked-diffusion"),
    "block_diffusion": ("a block diffusion", "block-diffusion"),
    "hybrid": ("a hybrid (autoregressive and masked diffusion)", "hybrid"),
}
_GENERATE = """\
```
pip install nar_scale
nar-scale generate --checkpoint path/to/{name} {asked}
```

```python
import nar_scale

model = nar_scale.load("path/to/{name}")  # model.wrapper is the network, model.tokenizer its tokenizer
```"""
_TRANSFORMERS = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/{name}")
tokenizer = AutoTokenizer.from_pretrained("path/to/{name}")
tokens = model.generate(**tokenizer("Once", return_tensors="pt"), max_length={length})
text = tokenizer.decode(tokens[0])
```"""
_TRANSFORMERS_WITHOUT_TEXT = """\
```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/{name}")  # of token ids; there is no tokenizer
```"""


def model_card(
    name: str,
    config: Config,
    info: ModelInfo,
    wrapper: nn.Module,
    library: Literal["nar_scale", "transformers"] = "nar_scale",
) -> str:
    """The text of `README.md` beside the weights of a model.

    What is not known is said to be unknown, and the likelihood is left out where the run measured none.

    Args:
        name: of the model.
        config: of its run.
        info: what is recorded about it.
        wrapper: the model, whose parameters are counted.
        library: that loads it.
    """
    article_and_kind, tag = _KINDS[config.objective.kind]
    text = info.tokenizer is not None
    head = {
        "license": info.license or UNKNOWN,
        "library_name": library,
        **({"pipeline_tag": "text-generation"} if text else {}),
        "tags": ["nar_scale", tag],
    }
    rows = "\n".join(f"| {what} | {_cell(value)} |" for what, value in _facts(config, info, wrapper))
    asked = '--prompt "Once"' if text else "--num-samples 4 --output samples"
    use = _GENERATE
    if library == "transformers":
        use = _TRANSFORMERS if text else _TRANSFORMERS_WITHOUT_TEXT
    use = use.format(name=printable(name), asked=asked, length=config.model.max_seq_len)
    origin = "trained with" if info.step else "imported by"
    settings = json.dumps(info.decode.decoding.model_dump(mode="json", exclude_none=True))
    return f"""---
{yaml.safe_dump(head, sort_keys=False)}---

# {_cell(name)}

This is {article_and_kind} transformer, {origin} nar_scale {version("nar_scale")}.

| | |
|---|---|
{rows}

## Use

{use}

Samples are drawn by default with `{settings}`.

## What is not stated

Who made the model, what it is meant for, how its data was chosen and what it gets wrong are for its makers to add here.
"""


def recorded_likelihoods(run: Path, step: int) -> tuple[RecordedLikelihood, ...]:
    """The last likelihood of each source that a run has measured up to a step; none where its log cannot be read."""
    found: dict[str, RecordedLikelihood] = {}
    for line in _lines(run / METRICS_FILE):
        at = line.get("step")
        if not isinstance(at, int) or at > step:
            continue
        for name, value in line.items():
            match = _VALIDATION.fullmatch(name)
            if match and match["source"] != "bound" and _is_number(value):
                prefix = name.removesuffix("nats_per_token")
                more = {key: line.get(f"{prefix}{key}") for key in ("standard_error", "bits_per_byte")}
                known = {
                    key: float(number) for key, number in more.items() if number is not None and _is_number(number)
                }
                source = match["source"] or ""
                found[source] = RecordedLikelihood(source, at, float(value), **known)
    return tuple(found.values())


def _facts(config: Config, info: ModelInfo, wrapper: nn.Module) -> Iterator[tuple[str, str]]:
    model, training = config.model, config.training
    parameters = sum(weight.numel() for weight in wrapper.parameters())
    yield "parameters", f"{parameters:,}"
    yield "architecture", f"{model.depth} layers of width {model.dim}, {model.heads} heads"
    yield "length of a sequence", f"{model.max_seq_len:,} tokens"
    yield "vocabulary", f"{info.vocabulary_size:,} tokens, {_tokenizer(info)}"
    yield "objective", _objective(config)
    if info.step:
        yield "training data", _data(config)
        tokens = info.samples * model.max_seq_len
        yield "training", f"{info.step:,} steps, {info.samples:,} sequences, at most {tokens:,} tokens"
        yield "optimizer", f"{config.optimizer.kind}, learning rate {config.optimizer.learning_rate:g}"
        yield "precision", training.precision
    else:
        yield "training data", "unknown: the model was imported"
    kind = "exact" if config.objective.kind in ("autoregressive", "hybrid") else "upper bound"
    for each in info.likelihoods:
        error = "" if each.standard_error is None else f" ± {each.standard_error:.4f}"
        bits = "" if each.bits_per_byte is None else f", {each.bits_per_byte:.3f} bits/byte"
        source = f" of {each.source}" if each.source else ""
        yield (
            f"negative log-likelihood of validation data{source}",
            f"{each.nats_per_token:.4f}{error} nats/token ({kind}){bits}, at step {each.step:,}",
        )
    yield "licence", info.license or UNKNOWN


def _tokenizer(info: ModelInfo) -> str:
    return {None: "of no tokenizer", "byte": "bytes"}.get(info.tokenizer, f"`{info.tokenizer}`")


def _objective(config: Config) -> str:
    loss = getattr(config.objective, "loss", None)
    return config.objective.kind.replace("_", "-") + ("" if loss is None else f", {loss} loss")


def _data(config: Config) -> str:
    """The names of the data sets, without the directories or addresses that they lie in."""
    if config.data.sources:
        return ", ".join(config.data.sources)
    return Path(str(config.data.directory).rstrip("/")).name


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        content = path.read_bytes()
    except OSError:
        return
    for line in content.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _cell(text: str) -> str:
    """Text that stays in its cell of a table, as text."""
    return re.sub(r"([|<>\[\]])", r"\\\1", printable(text))
