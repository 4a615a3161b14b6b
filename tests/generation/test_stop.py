"""Texts end before the first stop text that follows the prompt."""

import pytest

from nar_scale.data import ByteTokenizer
from nar_scale.errors import UserError
from nar_scale.generation import Request, SamplingOptions, generate, samples_from_scratch
from nar_scale.generation.sampling import _until_stop
from tests.errors import refused
from tests.generation.helpers import export


class Pieces:
    """A tokenizer of whole words."""

    PIECES = ("a", "b.", "\n", "\n\n", "stop", "é")

    def decode(self, tokens):
        return "".join(self.PIECES[token] for token in tokens)


@pytest.mark.parametrize(
    ("tokens", "stop", "expected"),
    [
        ([0, 1, 0], ["."], ([0], "ab")),  # within a token
        ([0, 2, 2, 0], ["\n\n"], ([0], "a")),  # of two tokens
        ([0, 3, 0], ["\n"], ([0], "a")),
        ([0, 4, 0, 2], ["\n", "stop"], ([0], "a")),  # the first in the text, not in the list
        ([4, 0], ["stop"], ([], "")),
        ([0, 5, 4], ["stop"], ([0, 5], "aé")),
        ([0, 5], ["stop"], ([0, 5], "aé")),
        ([0, 5], [], ([0, 5], "aé")),
    ],
)
def test_tokens_and_text_end_together(tokens, stop, expected):
    assert _until_stop(Request(0, prompt="zzz"), tokens, Pieces(), stop) == expected


def test_a_stop_text_in_the_prompt_does_not_count_and_gaps_have_no_end():
    text = list(b"a.b.c")
    assert _until_stop(Request(0, prompt="a."), text, ByteTokenizer(), ["."]) == (list(b"a.b"), "a.b")
    assert _until_stop(Request(0, text="a.<mask>.c"), text, ByteTokenizer(), ["."]) == (text, "a.b.c")
    assert _until_stop(Request(0), text, None, ["."]) == (text, None)


def test_letters_of_several_bytes_are_cut_whole():
    tokens = list("aéé.b".encode())
    assert _until_stop(Request(0), tokens, ByteTokenizer(), ["é."]) == (list("aé".encode()), "aé")


@pytest.mark.parametrize(("stop", "tokenizer", "named"), [(("",), "byte", ["stop"]), (("a",), None, ["stop"])])
def test_stop_texts_that_cannot_be_found_are_refused(tmp_path, stop, tokenizer, named):
    export(tmp_path / "model", "autoregressive", tokenizer=tokenizer)
    with refused(UserError, *named):
        generate(tmp_path / "model", tmp_path / "out", samples_from_scratch(1), SamplingOptions(stop=stop))
