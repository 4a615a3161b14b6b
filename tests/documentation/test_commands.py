"""Every command of the documentation is run, smaller, or listed with the reason why it is not."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from nar_scale.commands.console import COMMANDS
from tests.distributed.jobs import free_port
from tests.mistakes.run_all import run_all

from .blocks import PAGES, REPOSITORY, all_blocks, blocks_of, commands_of
from .substitutions import NOT_RUN, as_run, reason_not_to_run
from .world import build_world, open_page

FIRST = "README.md"  # leaves what the other pages go on with
TIMEOUT = 1500


def commands_on(page: str) -> list[str]:
    """The commands of a page, each once, in their order."""
    blocks = (block for block in blocks_of(page) if block.language == "bash")
    return list(dict.fromkeys(command for block in blocks for command in commands_of(block)))


COMMANDS_OF = {page: commands_on(page) for page in sorted(PAGES, key=lambda page: page != FIRST)}
RUN = {page: [each for each in commands if not reason_not_to_run(each)] for page, commands in COMMANDS_OF.items()}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[tuple[int, str]]]:
    """Exit status and output of what is run for each command of each page."""
    world = build_world(tmp_path_factory.mktemp("world"))
    cases, asked, launched = [], [], set()
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for page, commands in RUN.items():
        here = world if page == FIRST else open_page(world, tmp_path_factory.mktemp("page"), commands)
        for command in commands:
            try:
                runs = as_run(command, launch=not launched, train=page == FIRST or page not in launched)
            except ValueError as error:
                found[page, command] = [(2, str(error))]
                continue
            if command.startswith("deepspeed "):
                launched.add(page)
            for each in runs:
                each = each.replace("deepspeed ", f"deepspeed --master_port {free_port()} ", 1)
                cases.append((each, here, {"COLUMNS": "120"}))
                asked.append((page, command))
    for key, answer in zip(asked, run_all(cases, world, TIMEOUT)):
        found.setdefault(key, []).append(answer)
    return found


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize(("page", "command"), [(page, each) for page, commands in RUN.items() for each in commands])
def test_a_command_works(answers, page, command):
    for status, output in answers[page, command]:
        assert status == 0, output
        assert "Traceback" not in output


def test_each_reason_not_to_run_is_needed():
    commands = [each for commands in COMMANDS_OF.values() for each in commands]
    assert [start for start in NOT_RUN if not any(re.match(start, each) for each in commands)] == []


def test_a_command_that_is_neither_run_nor_listed_is_found():
    with pytest.raises(ValueError, match="rm -r data"):
        as_run("rm -r data")
    assert reason_not_to_run("rm -r data") is None


def test_the_readme_names_each_kind_of_command():
    used = {shlex.split(each)[1] for each in RUN[FIRST] if each.startswith("nar-scale")}
    assert used <= set(COMMANDS)
    assert {"prepare", "consolidate", "evaluate", "generate"} <= used


@pytest.mark.parametrize(
    "command", sorted({each for commands in COMMANDS_OF.values() for each in commands if reason_not_to_run(each)})
)
def test_what_is_listed_is_there(command):
    """Targets of make, scripts, modules and extras that commands name."""
    for script in re.findall(r"(?<![\w/.])(?:slurm|benchmarks|launcher)/[\w/]+\.\w+", command):
        assert (REPOSITORY / script).is_file(), script
    for module in re.findall(r"-m (benchmarks[.\w]+)", command):
        path = REPOSITORY / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    if command.startswith("make "):
        target = command.split()[1]
        assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for extras in re.findall(r"(?:nar_scale|\.)\[([\w,-]+)\]", command):
        known = (REPOSITORY / "pyproject.toml").read_text()
        assert all(re.search(rf"^{extra} = ", known, re.MULTILINE) for extra in extras.split(","))


def test_the_configuration_of_the_readme_is_the_one_that_is_trained():
    block = next(block for block in all_blocks("yaml") if block.page == FIRST)
    assert block.text.startswith("# my.yaml\n")
    assert yaml.safe_load(block.text)["data"]["directory"] in " ".join(RUN[FIRST])
    assert Path("my.yaml").name in " ".join(RUN[FIRST])
