"""What a job cannot be started with. The rest, on a real cluster: tests/slurm/test_supervisor.py."""

import pytest

from nar_scale.cluster.supervisor import TrainingSupervisor
from nar_scale.errors import UserError
from tests.errors import refused

ENVIRONMENT = {"SLURM_JOB_ID": "7", "NAR_SCALE_STOP_FILE": "slurm-stop-7"}


@pytest.mark.parametrize(
    ("arguments", "named"), [([], "no configuration given"), (["missing.yaml"], "no configuration file missing.yaml")]
)
def test_a_job_without_a_configuration_is_refused(tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    with refused(UserError, named):
        TrainingSupervisor(arguments, ENVIRONMENT, tmp_path)
