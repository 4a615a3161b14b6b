import os

import pytest

from nar_scale.text import counted, integer_ranges, printable


@pytest.mark.parametrize(
    ("numbers", "ranges"),
    [([], []), ([3], ["3"]), ([9, 3, 4, 5], ["3-5", "9"]), ([1, 1, 2], ["1-2"]), ([-2, -1, 0, 7], ["-2-0", "7"])],
)
def test_integers_are_shown_as_ranges(numbers, ranges):
    assert integer_ranges(numbers) == ranges
    assert integer_ranges(iter(numbers)) == ranges


def test_one_is_counted_in_the_singular():
    assert [counted(n, "shard") for n in (0, 1, 2, 12345)] == ["0 shards", "1 shard", "2 shards", "12,345 shards"]


def test_control_characters_are_escaped():
    assert printable("a\x1b[2Jä\n\u202e") == "a\\x1b[2Jä\\x0a\\x202e"
    assert printable(os.fsdecode(b"shard-\xff.tar")) == "shard-\\xff.tar"
