import socket

import pytest

from nar_scale.errors import UserError
from nar_scale.training.distributed import look_up_master, map_launcher_environment
from tests.errors import refused

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")

MASTER = {"MASTER_ADDR": "a", "MASTER_PORT": "29500"}
LAUNCHED = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", **MASTER}


def mapped(environment):
    map_launcher_environment(environment)
    return tuple(environment[name] for name in NAMES)


def test_alone():
    environment = {}
    assert mapped(environment) == ("0", "0", "1", "1", "127.0.0.1")
    assert int(environment["MASTER_PORT"]) > 0


def test_deepspeed_names_the_local_size_otherwise():
    given = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2", **MASTER}
    assert mapped(given) == ("3", "1", "4", "2", "a")


def test_torchrun_is_left_alone():
    assert mapped(dict(LAUNCHED)) == ("3", "1", "4", "2", "a")


def test_srun():
    given = {
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_NTASKS": "16",
        "MASTER_ADDR": "n1",
    }
    assert mapped(given) == ("5", "1", "8", "4", "n1")


def test_inside_a_batch_script_without_srun_a_process_is_alone():
    assert mapped({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == ("0", "0", "1", "1", "127.0.0.1")


def test_no_master_can_be_found(monkeypatch):
    monkeypatch.setenv("PATH", "")
    given = {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    with pytest.raises(UserError, match=r"n\[1-2\].*MASTER_ADDR"):
        map_launcher_environment(given)


@pytest.mark.parametrize("lacking", ["MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_RANK"])
def test_a_rank_without_what_belongs_to_it_is_refused(lacking):
    given = {name: value for name, value in LAUNCHED.items() if name != lacking}
    with refused(UserError, "RANK", lacking, "torchrun"):
        map_launcher_environment(given)


@pytest.mark.parametrize(("name", "value"), [("RANK", "first"), ("MASTER_PORT", "-1"), ("RANK", "4")])
def test_a_rank_that_cannot_be_is_refused(name, value):
    with refused(UserError, name, value):
        map_launcher_environment({**LAUNCHED, name: value})


def test_a_first_rank_of_a_known_address_is_found():
    for address in ("localhost", "127.0.0.1", "::1"):
        look_up_master(address, 29500)


@pytest.mark.parametrize("address", ["no host", "a..b", "nowhere.invalid"])
def test_a_first_rank_of_an_unknown_name_is_refused(address):
    with refused(UserError, f"{socket.gethostname()} knows no host of the name {address!r}", "MASTER_ADDR"):
        look_up_master(address, 29500, seconds=1)


def test_a_name_that_comes_late_is_waited_for(monkeypatch):
    known, answers = socket.getaddrinfo, iter([False, False, True])

    def look_up(name, *arguments, **options):
        return known("localhost" if next(answers) else "no host", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    look_up_master("n1", 29500)
    assert not list(answers)
