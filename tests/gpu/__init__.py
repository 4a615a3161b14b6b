"""What only a GPU can show, and a rehearsal of it without one.

    python -m pytest tests/gpu                                       on a machine with a GPU, in about two minutes
    NAR_SCALE_GPU_TESTS=rehearse python -m pytest tests/gpu          the same code on CPUs (gloo, small shapes)
    NAR_SCALE_GPU_TESTS=rehearse-one python -m pytest tests/gpu      likewise, one case of each test

Without a GPU and without the variable all of them are skipped, which is what `make test` does on CPUs. A rehearsal
skips only what has no meaning on a CPU, and gives the reason. It trains as on a GPU as far as a CPU can (`inside.py`),
also in fp16 and with FlexAttention, which are refused there.

A start of DeepSpeed takes longer than a small run, so training happens case after case (`cases.py`) in two processes
that start at once and work beside the tests, which wait for the results that they need. A case that fails, even one
that takes its process down, costs the others nothing. What a run computes is compared with a plain loop on the same
device, from the same weights (`plain.py`).

What is measured (memory, waits of the host, ...) is recorded as properties of the tests, which
`--junitxml` and `benchmarks/gpu.sh` keep, and printed at the end.

| module | what it shows |
|---|---|
| `test_attention` | FlexAttention's gradients are SDPA's |
| `test_bad_data` | data that does not fit ends a run with one line |
| `test_noise` | masks and noise do not depend on the device |
| `test_inference` | logits and generated tokens on the device |
| `test_training` | ZeRO, optimizers, offload, fp16, resuming |
| `test_step` | a step: waits of the host, memory, compilations |
"""
