"""Each block says what it is, and data in it can be read."""

import pytest
import yaml

from nar_scale.config import load_config

from .blocks import LANGUAGES, PAGES, Block, all_blocks, blocks_of

BASE = {
    "model": {"dim": 32, "depth": 1, "heads": 2, "max_seq_len": 32},
    "objective": {"kind": "non_autoregressive"},
    "data": {"directory": "data/mine"},
    "optimizer": {"learning_rate": 3e-4},
    "training": {"steps": 200_000, "global_batch_size": 8, "micro_batch_size": 2, "run_directory": "runs/my"},
}


def place(block: Block) -> str:
    return block.place


@pytest.mark.parametrize("page", PAGES)
def test_each_block_names_its_language(page):
    text = (block.place for block in blocks_of(page) if block.language not in LANGUAGES)
    assert list(text) == []


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=place)
def test_yaml_is_a_configuration_or_a_part_of_one(block, tmp_path):
    sections = yaml.safe_load(block.text)
    base = tmp_path / "base.yaml"
    mixture = "sources" in sections.get("data", {})
    base.write_text(yaml.safe_dump({name: BASE[name] for name in BASE if name != "data" or not mixture}))
    keys = [(f"{name}.{key}", value) for name, section in sections.items() for key, value in section.items()]
    assert keys
    load_config(base, [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in keys])
