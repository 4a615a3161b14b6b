"""How long `slurm/preflight.sbatch` takes on a private SLURM cluster, with links that are alike and with a slow one.

python -m benchmarks.preflight_on_slurm [--nodes 3] [--rate 200mbit]

Needs what tests/slurm needs, and the kernel's token bucket filter (`tc ... tbf`) for the slow link.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.slurm.cluster import ENDED, Cluster

REPOSITORY = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rate", default="200mbit", help="of the slow link, as tc takes it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for each in ("launcher", "slurm"):
            (directory / each).symlink_to(REPOSITORY / each)
        shutil.copy(REPOSITORY / "configs" / "quickstart_nar.yaml", directory / "config.yaml")
        prepare = ["launcher/prepare.py", "--input", str(REPOSITORY / "nar_scale"), "--include", "*.py"]
        sizes = ["--output", "corpus", "--seq-len", "128", "--validation", "0.1"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        subprocess.run([sys.executable, *prepare, *sizes], cwd=directory, env=environment, check=True)
        (directory / "cluster").mkdir()
        cluster = Cluster(directory / "cluster", nodes=options.nodes)
        cluster.start()
        try:
            report(cluster, directory, "links that are alike")
            last = f"n{options.nodes}"
            for node, device in (("ctl", f"veth{options.nodes}"), (last, "eth0")):  # to the node, and from it
                shape = ["tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", options.rate]
                cluster.run(*shape, "burst", "256kb", "latency", "100ms", node=node)
            report(cluster, directory, f"{last} has a link of {options.rate}")
        finally:
            cluster.stop()


def report(cluster: Cluster, directory: Path, what: str) -> None:
    """Submit the preflight of a run on all nodes; print how long it takes and what it says of the nodes."""
    options = (f"--nodes={cluster.nodes}", "--ntasks-per-node=1", "--cpus-per-task=1")
    arguments = ("config.yaml", "data.directory=corpus", f"training.global_batch_size={8 * cluster.nodes}")
    env = {"NAR_SCALE_PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    script = REPOSITORY / "slurm" / "preflight.sbatch"
    job = cluster.submit(script, *arguments, options=options, directory=directory, env=env)
    cluster.wait(job, ENDED, timeout=300)
    seconds = time.monotonic() - start
    print(f"{what}: {cluster.state(job)} after {seconds:.0f} s, from sbatch on")
    print(cluster.output(job))


if __name__ == "__main__":
    main()
