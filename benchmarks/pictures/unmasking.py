"""A text and digits that appear from masks, one network call after another, as SVG."""

from __future__ import annotations

from html import escape
from pathlib import Path

import torch

import nar_scale
from nar_scale.checkpoint import LoadedModel
from nar_scale.decoding import SamplingOptions
from nar_scale.generation.requests import Request
from nar_scale.generation.sampling import generate_samples

TEXT = """\
class Name(object):
    def __init__(<mask:1>, value):
       <mask:1>.value = value

    def test_name(<mask:1>):
       <mask:1>.<mask:1>(self.value, None)
        with<mask:1>.<mask:1>(<mask:1>):
           <mask:1>.name(value)
"""
TEXT_SAMPLING = SamplingOptions(sampler="entropy", sampler_options={"steps": 3, "temperature": 0.0})
DIGITS_CALLS = (0, 2, 4, 6, 8, 10, 12, 14, 16)
HATCH = "#d9d4c7"  # of masks
NEW = "#f4b26a"  # revealed by this call
CHARACTER, LINE = 6.6, 15  # pixels of the monospace letters
PIXEL = 7  # of a digit


def steps_of(model: LoadedModel, requests: list[Request], options: SamplingOptions) -> list[list[list[int]]]:
    """The tokens of each request after each network call, `[requests][calls][n]`."""
    seen: dict[int, list[list[int]]] = {request.number: [] for request in requests}

    def watch(request: Request, tokens: list[int], call: int) -> None:
        if len(seen[request.number]) < call:
            seen[request.number].append(list(tokens))

    for _ in generate_samples(model, requests, options, len(requests), watch):
        pass
    return list(seen.values())


def draw_text(checkpoint: Path) -> str:
    """An SVG of a text with gaps, and of the calls that fill it in."""
    model = nar_scale.load(checkpoint)
    assert model.tokenizer is not None
    mask_id = model.info.decode.mask_id
    states = steps_of(model, [Request(number=0, text=TEXT)], TEXT_SAMPLING)[0]
    gaps = [token == mask_id for token in _with_gaps(model)]
    states = [[mask_id if gap else token for token, gap in zip(states[-1], gaps)], *states]  # type: ignore[misc]
    pieces = [model.tokenizer.decode([token]) for token in states[-1]]
    rows, columns = TEXT.count("\n"), max(map(len, "".join(pieces).splitlines()))
    width, height = columns * CHARACTER + 24, rows * LINE + 34
    panels = []
    for number, state in enumerate(states):
        x, y = (number % 2) * (width + 12), (number // 2) * (height + 10)
        title = "given" if number == 0 else f"network call {number}"
        before = states[number - 1] if number else state
        panels.append(_text_panel(x, y, width, height, title, pieces, state, before, mask_id))
    tall = (len(states) + 1) // 2
    return _svg(2 * width + 12, tall * (height + 10) - 10, panels)


def _with_gaps(model: LoadedModel) -> list[int]:
    from nar_scale.generation.encoding import encode_request

    return encode_request(Request(number=0, text=TEXT), model, model.wrapper.max_seq_len)


def _text_panel(
    x: float,
    y: float,
    width: float,
    height: float,
    title: str,
    pieces: list[str],
    state: list[int],
    before: list[int],
    mask_id: int | None,
) -> str:
    drawn = [_frame(width, height, title)]
    row, column = 0, 0
    for piece, token, previous in zip(pieces, state, before):
        masked, new = token == mask_id, token != previous
        for number, line in enumerate(piece.split("\n")):
            if number:
                row, column = row + 1, 0
            left, top = 12 + column * CHARACTER, 40 + row * LINE
            if (masked or new) and line:
                colour = HATCH if masked else NEW
                size = f'width="{len(line) * CHARACTER:.1f}" height="{LINE - 2}"'
                drawn.append(f'<rect x="{left:.1f}" y="{top - 11:.1f}" {size} rx="2" fill="{colour}"/>')
            if not masked and line.strip():
                drawn.append(f'<text x="{left:.1f}" y="{top:.1f}" xml:space="preserve">{escape(line)}</text>')
            column += len(line)
    return f'<g transform="translate({x:.1f} {y:.1f})">{"".join(drawn)}</g>'


def draw_digits(checkpoint: Path) -> str:
    """An SVG of one digit of each class, from masks alone."""
    model = nar_scale.load(checkpoint)
    shape = model.config.logging.image_shape
    assert shape is not None
    requests = [Request(number=number, class_id=number) for number in range(10)]
    sequences = steps_of(model, requests, SamplingOptions())
    mask_id = model.info.decode.mask_id
    side = PIXEL * shape[1]
    shades: dict[str, list[str]] = {}
    labels, edges = [], []
    for row, call in enumerate(DIGITS_CALLS):
        y = row * (side + 8)
        labels.append(f'<text x="0" y="{y + side // 2 + 4}">{call:>2} calls</text>')
        for number, states in enumerate(sequences):
            x = 62 + number * (side + 8)
            edges.append(f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="none" stroke="#c8c2b4"/>')
            state = [mask_id] * len(states[0]) if call == 0 else states[min(call, len(states)) - 1]
            for position, token in enumerate(state):
                shade = HATCH if token == mask_id else "#" + f"{255 - 15 * (token or 0):02x}" * 3
                left, top = x + PIXEL * (position % shape[1]), y + PIXEL * (position // shape[1])
                shades.setdefault(shade, []).append(f"M{left} {top}h{PIXEL}v{PIXEL}h-{PIXEL}z")
    squares = [f'<path fill="{shade}" d="{"".join(path)}"/>' for shade, path in shades.items() if shade != "#ffffff"]
    return _svg(62 + 10 * (side + 8) - 8, len(DIGITS_CALLS) * (side + 8) - 8, [*squares, *labels, *edges])


def _frame(width: float, height: float, title: str) -> str:
    box = f'<rect width="{width:.1f}" height="{height}" rx="4" fill="#fbfaf7" stroke="#ddd8cc"/>'
    return f'{box}<text x="12" y="18" class="title">{escape(title)}</text>'


def _svg(width: float, height: float, drawn: list[str]) -> str:
    style = (
        "text{font:11px 'DejaVu Sans Mono',Menlo,Consolas,monospace;fill:#222}"
        ".title{font:bold 11px 'DejaVu Sans',Helvetica,Arial,sans-serif;fill:#777}"
    )
    size = f'width="{width + 16:.0f}" height="{height + 16:.0f}" viewBox="-8 -8 {width + 16:.0f} {height + 16:.0f}"'
    ground = f'<rect x="-8" y="-8" width="{width + 16:.0f}" height="{height + 16:.0f}" fill="white"/>'
    lines = "\n".join(drawn)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>{ground}\n{lines}\n</svg>\n'


def write_unmasking(checkpoint: Path, digits: Path, folder: Path) -> None:
    """Write `unmasking.svg` from a checkpoint of `configs/quickstart_nar.yaml`, `digits.svg` from `digits_nar.yaml`."""
    torch.set_num_threads(1)
    (folder / "unmasking.svg").write_text(draw_text(checkpoint))
    (folder / "digits.svg").write_text(draw_digits(digits))
