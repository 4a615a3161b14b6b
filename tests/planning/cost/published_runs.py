"""Runs whose speed has been published, with the source of each, as configurations of this project."""

from dataclasses import dataclass, field
from typing import Any

TITAN = "https://github.com/pytorch/torchtitan/blob/main"
TITAN_H100 = f"{TITAN}/benchmarks/llama3_h100_202412_torchtitan.md"
TITAN_A100 = f"{TITAN}/docs/performance.md"  # an earlier version of it, of 2024
FOUNDRY = "https://github.com/mosaicml/llm-foundry/blob/main/scripts/train/benchmarking/README.md"
OLMO = "https://github.com/allenai/OLMo-core/blob/main/README.md"  # an earlier version; micro-batches by its scripts
TINY_LLAMA = "https://github.com/jzhang38/TinyLlama/blob/main/README.md"

# arXiv:2407.21783, table 3; MPT's shapes are those of llm-foundry's YAML files, OLMo's of its llama2_7B and 13B
LLAMA_8B = {"dim": 4096, "depth": 32, "heads": 32, "kv_heads": 8, "feedforward_dim": 14336, "max_seq_len": 8192}
LLAMA_70B = {"dim": 8192, "depth": 80, "heads": 64, "kv_heads": 8, "feedforward_dim": 28672, "max_seq_len": 8192}
MPT = {"feedforward": "gelu", "positions": "learned", "tie_embeddings": True, "norm": "layernorm", "max_seq_len": 2048}
MPT_125M = {**MPT, "dim": 768, "depth": 12, "heads": 12}
MPT_1B = {**MPT, "dim": 2048, "depth": 24, "heads": 16}
MPT_7B = {**MPT, "dim": 4096, "depth": 32, "heads": 32}
MPT_13B = {**MPT, "dim": 5120, "depth": 40, "heads": 40}
MPT_30B = {**MPT, "dim": 7168, "depth": 48, "heads": 56}
OLMO_7B = {"dim": 4096, "depth": 32, "heads": 32, "feedforward_dim": 11008, "qk_norm": True, "max_seq_len": 4096}
OLMO_13B = {"dim": 5120, "depth": 40, "heads": 40, "feedforward_dim": 13824, "qk_norm": True, "max_seq_len": 4096}
TINY = {"dim": 2048, "depth": 22, "heads": 32, "kv_heads": 4, "feedforward_dim": 5632, "max_seq_len": 2048}


@dataclass(frozen=True)
class PublishedRun:
    """A run and the tokens/s of each device that it has been published with.

    Attributes:
        extra_passes: forward passes of the blocks' products that are computed again beside what the config says:
            torchtitan's `selective op` repeats every second product, ours none.
        device_changes: where the devices were not those of the data sheet.
    """

    name: str
    source: str
    model: dict[str, Any]
    vocabulary: int
    device: str
    devices: int
    micro_batch: int
    accumulation: int
    recomputation: str
    tokens_per_second: float
    extra_passes: float = 0.0
    device_changes: dict[str, float] = field(default_factory=dict)


HBM2E = {"memory_bandwidth": 2.4e12}  # of the H100 that torchtitan's team measured on, by the same page
RUNS = [
    PublishedRun(
        *("torchtitan, Llama 3.1 8B", TITAN_H100, LLAMA_8B, 128_256, "h100", 8, 2, 1, "selective", 6667), 0.5, HBM2E
    ),
    PublishedRun(
        *("torchtitan, Llama 3.1 8B", TITAN_H100, LLAMA_8B, 128_256, "h100", 128, 2, 1, "selective", 6514), 0.5, HBM2E
    ),
    PublishedRun(*("torchtitan, Llama 3 8B", TITAN_A100, LLAMA_8B, 128_256, "a100", 64, 1, 1, "selective", 2973), 0.5),
    PublishedRun("torchtitan, Llama 3 70B", TITAN_A100, LLAMA_70B, 128_256, "a100", 64, 1, 1, "full", 331),
    PublishedRun("llm-foundry, MPT 125M", FOUNDRY, MPT_125M, 50_368, "a100", 8, 32, 2, "none", 141_737),
    PublishedRun("llm-foundry, MPT 1B", FOUNDRY, MPT_1B, 50_368, "h100", 8, 14, 1, "none", 45_455),
    PublishedRun("llm-foundry, MPT 1B", FOUNDRY, MPT_1B, 50_368, "h100", 64, 20, 1, "none", 44_402),
    PublishedRun("llm-foundry, MPT 1B", FOUNDRY, MPT_1B, 50_368, "a100", 8, 14, 4, "none", 20_513),
    PublishedRun("llm-foundry, MPT 7B", FOUNDRY, MPT_7B, 50_368, "h100", 8, 6, 1, "none", 10_643),
    PublishedRun("llm-foundry, MPT 7B", FOUNDRY, MPT_7B, 50_368, "a100", 8, 6, 2, "none", 4_641),
    PublishedRun("llm-foundry, MPT 7B", FOUNDRY, MPT_7B, 50_368, "a100-40", 128, 18, 1, "full", 3_623),
    PublishedRun("llm-foundry, MPT 13B", FOUNDRY, MPT_13B, 50_368, "h100", 64, 2, 1, "none", 4_800),
    PublishedRun("llm-foundry, MPT 30B", FOUNDRY, MPT_30B, 50_368, "h100", 16, 10, 3, "full", 2_263),
    PublishedRun("OLMo-core, OLMo 7B", OLMO, OLMO_7B, 100_352, "h100", 8, 2, 64, "none", 10_000),
    PublishedRun("OLMo-core, OLMo 13B", OLMO, OLMO_13B, 100_352, "h100", 8, 1, 256, "none", 4_600),
    PublishedRun("TinyLlama 1.1B", TINY_LLAMA, TINY, 32_000, "a100-40", 16, 8, 8, "none", 24_000),
]
