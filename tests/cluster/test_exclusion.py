import pytest

from nar_scale.cluster.exclusion import Node, nodes_to_exclude

KIND = "4,8000,gpu:2,(null)"


def partition(**states):
    return [Node(name, state, KIND) for name, state in states.items()]


FOUR = partition(n1="mixed", n2="allocated", n3="idle", n4="idle~")


@pytest.mark.parametrize(
    ("suspects", "excluded", "nodes", "expected"),
    [
        (["n2"], [], FOUR, ("n2",)),
        (["n2"], ["n4"], FOUR, ("n2",)),
        (["n2"], ["n3", "n4"], FOUR, ()),
        (["n2"], [], partition(n1="mixed", n2="down*"), ()),
        (["n2"], [], partition(n1="mixed", n2="down*", n3="drained"), ()),
        (["n2"], [], partition(n1="mixed", n2="mixed", n3="idle*"), ()),
        (["n2"], [], [*FOUR[:2], Node("n3", "idle", "4,8000,(null),(null)")], ()),
        (["n1", "n2"], [], FOUR, ()),
        ([], [], FOUR, ()),
        (["n2"], [], [], ()),
    ],
    ids=[
        *("another node is there", "and one that is left out already", "all others are left out", "no other node"),
        *("the other is drained", "the other does not respond", "the other has no GPU", "all nodes are suspect"),
        *("no suspect", "SLURM does not tell"),
    ],
)
def test_nodes_are_left_out_where_others_can_take_their_place(suspects, excluded, nodes, expected):
    assert nodes_to_exclude(suspects, ["n1", "n2"], excluded, nodes) == expected


def test_the_only_node_of_a_job_is_left_out():
    assert nodes_to_exclude(["n1"], ["n1"], [], FOUR) == ("n1",)
