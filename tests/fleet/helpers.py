"""A worker whose results take no model."""

import json
import time
from dataclasses import replace

from nar_scale.fleet import Holder, SharedDirectory, Units, Worker

HERE = Holder.of_this_process({})


def result(number):
    return json.dumps(
        {"number": number, "generated": f"text {number}é", "class": number % 3}, ensure_ascii=False
    ).encode()


class Maker:
    """Makes results in batches, each of which takes a while."""

    def __init__(self, batch=2, seconds=0.0):
        self.batch, self.seconds, self.made = batch, seconds, []

    def make(self, numbers):
        for start in range(0, len(numbers), self.batch):
            batch = numbers[start : start + self.batch]
            time.sleep(self.seconds)
            self.made += batch
            yield {number: result(number) for number in batch}

    def before_commit(self, unit, results):
        pass


class Breaking(Maker):
    """Cannot make some numbers."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = set(numbers)

    def make(self, numbers):
        for batch in super().make(numbers):
            if self.numbers & set(batch):
                raise RuntimeError("the device is gone")
            yield batch


def units(directory, layout, host="here", **arguments):
    directory.mkdir(exist_ok=True)
    return Units(SharedDirectory(directory), layout, replace(HERE, host=host, token=host), **arguments)


def worker(directory, layout, maker=None, **arguments):
    return Worker(units(directory, layout), maker or Maker(), **arguments)


def record(directory, layout):
    directory.mkdir(exist_ok=True)
    fields = {"count": layout.count, "part_size": layout.part_size, "format": layout.format}
    (directory / "generation.json").write_text(json.dumps(fields))
