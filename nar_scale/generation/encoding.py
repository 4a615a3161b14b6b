"""From requests to the tokens that a model is given, and what keeps a request from becoming such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nar_scale.checkpoint import LoadedModel
from nar_scale.data import Tokenizer
from nar_scale.errors import UserError
from nar_scale.generation.requests.request import GAP, Request
from nar_scale.text import integer_ranges, quoted

_GAP_DIGITS = 12  # a gap of more digits is too long for any model, and is not counted out
_FAULTS_IN_FULL = 3
_RANGES = 20


def check_requests(requests: Sequence[Request], model: LoadedModel, length: int) -> list[Request]:
    """Give requests from scratch the classes in turn, and note the fault of each that the model cannot take.

    Args:
        requests: of all workers.
        model: whose weights are not looked at, so that it may be on the meta device.
        length: tokens of a sequence, prompt included, at most.
    """
    return [_check_request(request, model, length) for request in requests]


def refuse_faults(requests: Sequence[Request]) -> None:
    """Refuse requests of which some have a fault.

    Raises:
        UserError: some have; the first faults are named with their lines, of the others the lines alone.
    """
    faulty = [request for request in requests if request.fault is not None]
    if not faulty:
        return
    unit = "prompt" if faulty[0].line is None else "line"
    places = [request.number if request.line is None else request.line for request in faulty]
    file = "" if faulty[0].file is None else f"{faulty[0].file}, "
    named = [f"{unit} {place}: {request.fault}" for place, request in zip(places, faulty)][:_FAULTS_IN_FULL]
    ranges = integer_ranges(places[_FAULTS_IN_FULL:])
    if ranges:
        named.append(f"and {unit}s {', '.join(ranges[:_RANGES])}{', ...' if ranges[_RANGES:] else ''}")
    raise UserError(f"{file}{'; '.join(named)} (--on-bad-prompt skip goes on without)")


def assign_class(request: Request, num_classes: int | None) -> Request:
    """Give a request from scratch its class in turn, and check the class of any other.

    Args:
        request: of any kind.
        num_classes: of the model; None if it is not conditional on a class.

    Raises:
        UserError: a class that the model does not have, or a prompt without a class for a model that needs one.
    """
    class_id = request.class_id
    if num_classes is None:
        if class_id is not None:
            raise UserError(f"class {class_id} is asked for, but the model is not conditional on a class")
        return request
    if class_id is None:
        asked = request.prompt if request.text is None else request.text
        if asked is not None:
            raise UserError(
                f'the prompt {quoted(asked, 60)} has no class; add "class": 0..{num_classes - 1} to its line'
            )
        return replace(request, class_id=request.number % num_classes)
    if not 0 <= class_id < num_classes:
        raise UserError(f"class {class_id} is asked for, which is outside the model's 0..{num_classes - 1}")
    return request


def encode_request(request: Request, model: LoadedModel, length: int) -> list[int]:
    """The tokens that the model is given: with mask tokens, or where it generates left to right, the prompt alone.

    Raises:
        UserError: the request has a fault, is of another kind than the model takes, or has too many tokens.
    """
    if request.fault is not None:
        raise UserError(f"prompt {request.number}: {request.fault}")
    mask_id, fills_gaps = model.info.decode.mask_id, model.wrapper.fills_gaps
    if request.text is not None:
        if mask_id is None or not fills_gaps:
            raise UserError(
                f"a model of kind {model.config.objective.kind} cannot fill in gaps; give it a 'prompt' without <mask> "
                f"instead of the text {quoted(request.text, 60)}"
            )
        tokens = fill_gaps(request.text, _tokenizer(model), mask_id, length)
        if mask_id not in tokens:
            raise UserError(f"the text {quoted(request.text, 60)} has no <mask> gap of a token or more to fill in")
        return tokens
    prompt = _tokenizer(model).encode(request.prompt.encode()).tolist() if request.prompt else []
    tokens = model.wrapper.start_from(prompt, length, model.info.decode.end_token)
    if len(tokens) > length or (not fills_gaps and len(tokens) == length):
        raise _too_long(f"prompt {quoted(request.prompt or '', 60)}", len(tokens), length)
    return tokens


def fill_gaps(text: str, tokenizer: Tokenizer, mask_id: int, length: int) -> list[int]:
    """The token ids of a text, in which each gap is as many mask tokens as it says (see `Request`).

    Raises:
        UserError: they are more than `length`.
    """
    first, *rest = GAP.split(text)
    known = [tokenizer.encode(piece.encode()).tolist() for piece in (first, *rest[1::2])]
    sizes = [int(digits[:_GAP_DIGITS]) if digits else 1 for digits in rest[::2]]
    total = sum(sizes) + sum(map(len, known))
    if total > length:
        raise _too_long(f"text {quoted(text, 60)}", total, length)
    tokens: list[int] = known[0]
    for size, piece in zip(sizes, known[1:]):
        tokens += [mask_id] * size + piece
    return tokens


def _check_request(request: Request, model: LoadedModel, length: int) -> Request:
    if request.fault is not None:
        return request
    try:
        request = assign_class(request, model.wrapper.num_classes)
        encode_request(request, model, length)
    except UserError as error:
        return replace(request, fault=str(error))
    return request


def _too_long(prompt: str, tokens: int, length: int) -> UserError:
    return UserError(f"the {prompt} has {tokens} tokens, which leaves no room within {length}; shorten it")


def _tokenizer(model: LoadedModel) -> Tokenizer:
    if model.tokenizer is None:
        raise UserError("the checkpoint names no tokenizer, so it takes no text prompts; set data.tokenizer")
    return model.tokenizer
