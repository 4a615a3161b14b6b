"""What `benchmarks/gpu.sh` runs on a machine with one GPU: the stages, and what runs and reports them.

A stage is a program, run in the repository's root in a process group of its own as

    python -m benchmarks.gpu.<module> --output FILE.json --seconds N [--rehearse]

in this order (`benchmarks.gpu.run.STAGES` has the time limits):

    stage        module             what it measures
    facts        facts              the GPU, versions, ceilings of a matrix product and a copy
    tests        tests              tests/gpu, each test a measurement
    training     training_speed     tokens/s, MFU, memory, a step's breakdown, beside x-transformers
    generation   generation_speed   tokens/s of samplers, beside x-transformers

What a stage keeps to:

- FILE.json is an object {"measurements": [...], "notes": [...]}, rewritten atomically after every single measurement,
  so that a stage which is killed loses nothing. A measurement is {"name": str, "value": number or str, "unit": str} and
  any further keys (shapes, seconds, messages) that JSON can hold; its name is unique within the stage. One with
  "headline": true also stands in the short table that ends the command's output, at most 10 a stage, and there with its
  "goal" and whether that is "reached", where it has one. A note is a sentence for the reader.
- The most valuable measurement comes first, as time may end. N is the stage's time in seconds, its start included; it
  plans to be done in less, as its whole process group is killed then.
- Exit status 0: all was measured. Anything else: something failed, and the end of its output, which the runner keeps
  and shows, says what. What can fail alone (out of memory, say) should not stop what comes after it.
- `--rehearse`: the same code on CPUs with tiny shapes in a few seconds, so that a typo does not cost a GPU.
- No network, no change of the GPU's settings. Files only below `tempfile.gettempdir()`, which the runner removes
  afterwards, and FILE.json. The prepared data set of bytes is at `stage.kit_data()`: samples of 2,048 tokens with
  `documents.npy` beside them. The environment variable NAR_SCALE_REHEARSE is "1" in a rehearsal, for tests/gpu.

`benchmarks.gpu.stage` has the arguments and the writing of FILE.json:

    arguments = stage.arguments(__doc__)
    record = stage.Record(arguments.output)
    record.add("copy", 3.01, "TB/s", headline=True, bytes=2 * size)
    record.note("The copy counts bytes read and written.")
"""
