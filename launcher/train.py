"""Train a model from a YAML file. Under `deepspeed`, torchrun or srun, or alone with plain `python`.

deepspeed --num_accelerators 2 launcher/train.py --config configs/quickstart_nar.yaml training.steps=200
"""

import argparse
import os
import sys

from nar_scale.training import launch


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE", help="the YAML file of the run")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="go on from the newest good checkpoint of the run directory (auto), or from this one (default: auto)",
    )
    parser.add_argument("--verbose", action="store_true", help="show the libraries' warnings and logs as well")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # given by the deepspeed launcher
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file")
    options = parser.parse_intermixed_args(arguments)

    return launch(options.config, options.overrides, options.resume, options.verbose)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # tearing down a process group whose peers have failed can abort or hang
