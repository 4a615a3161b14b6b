"""What slurm/train.sbatch runs: see `nar_scale.cluster.supervisor`."""

import sys

from nar_scale.cluster.supervisor import main

sys.exit(main(sys.argv[1:]))
