"""`nar-scale init`."""

from pathlib import Path

import pytest

from nar_scale.commands.init import main
from nar_scale.config import load_config
from tests.errors import assert_names

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("name", ["quickstart_nar", "digits_nar"])
def test_an_example_is_written_and_never_over_another(tmp_path, capsys, name):
    arguments = [str(tmp_path / "new"), *([] if name == "quickstart_nar" else ["--example", name])]
    assert main(arguments) == 0
    written = tmp_path / "new" / f"{name}.yaml"
    assert written.read_bytes() == (CONFIGS / f"{name}.yaml").read_bytes()
    assert (tmp_path / "new" / f"{name}.prompts.jsonl").exists() == (CONFIGS / f"{name}.prompts.jsonl").exists()
    printed = capsys.readouterr().out
    config = load_config(written)
    if name.startswith("digits"):
        job, override = f"digits --output {config.data.directory}", ""
    else:
        tokenizer = "--tokenizer data/new.tokenizer.json --train-tokenizer 2048"
        job = f"corpus TEXT_FILES --seq-len {config.model.max_seq_len} {tokenizer} --output data/new"
        override = " data.directory=data/new"
    assert f"  nar-scale prepare {job}\n" in printed
    assert f"  nar-scale train --config {written}{override} " in printed

    written.write_text("mine")
    assert main(arguments) == 2
    assert_names(capsys.readouterr().err.rstrip("\n"), written)
    assert written.read_text() == "mine"


def test_the_examples_are_those_that_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"\n  {path.stem} " in printed for path in CONFIGS.glob("*.yaml"))
    with pytest.raises(SystemExit) as ended:
        main(["x", "--example", "quickstart"])
    assert ended.value.code == 2
    assert_names(capsys.readouterr().err.splitlines()[-1], "quickstart_nar")
