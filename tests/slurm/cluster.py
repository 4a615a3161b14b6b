"""A private, real SLURM cluster on one machine: a controller and a few nodes that see each other over a network.

The whole cluster lives in one process namespace whose first process ends when the pipe to its owner closes, so nothing
outlives the tests, even when they are killed. Each node has its own network, process, host name and mount namespace.
"""

import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

NAMESPACES = ("unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "mungekey", "ip", "unshare", "nsenter")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
LONGEST_DIRECTORY = 60  # unix sockets are made below it, and their paths end at 107 characters

# Far shorter times than the defaults, with which a requeue takes minutes; a cred_expire below 5 is ignored silently.
# KillOnBadExit=1 is what some sites set and a job script must cope with.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost=ctl(10.77.0.254)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={directory}/munge/socket,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool.%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdLogFile={directory}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=100000
SlurmdParameters=config_overrides
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout={slurmd_timeout}
KillWait=2
KillOnBadExit=1
GresTypes=gpu
NodeName=n[1-{nodes}] NodeAddr=10.77.0.[1-{nodes}] CPUs=4 RealMemory=8000 Gres=gpu:{gpus}
PartitionName=main Nodes=ALL Default=YES DefaultTime=10 MaxTime=INFINITE State=UP
"""


def unavailable() -> str | None:
    """Why no cluster can be started here, in one line; None when it can."""
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        packages = "slurmctld slurmd slurm-client munge iproute2 util-linux"
        return f"no {', '.join(missing)} here: apt-get install {packages}"
    if subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode:
        own_namespace = "unshare --user --map-current-user --keep-caps --mount pytest tests/slurm"
        return f"may not create namespaces: run as root, or as {own_namespace!r}"
    return None


def write_submission(directory: Path, trainer: str) -> Path:
    """A directory to submit training jobs from, whose trainer stands in for the real one, with a configuration."""
    (directory / "launcher").mkdir()
    (directory / "launcher" / "train.py").write_text(trainer)
    shutil.copy(Path(__file__).parents[2] / "configs" / "quickstart_nar.yaml", directory / "config.yaml")
    return directory


def eventually(what: str, condition: Callable[[], bool], timeout: float = 90) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout} seconds: {what}"
        time.sleep(0.1)


class Cluster:
    """`nodes` nodes named n1, n2, ... of 4 CPUs and `gpus` pretended GPUs each; its state lives below `directory`.

    SLURM takes a node for dead after `slurmd_timeout` seconds.
    """

    def __init__(self, directory: Path, nodes: int = 2, gpus: int = 2, slurmd_timeout: int = 20) -> None:
        if len(str(directory)) > LONGEST_DIRECTORY:
            raise ValueError(f"too long for unix sockets (over {LONGEST_DIRECTORY} characters): {directory}")
        self.directory = directory
        self.nodes = nodes
        self.gpus = gpus
        self.slurmd_timeout = slurmd_timeout
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Cluster":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 30) -> None:
        """Return once every node is idle."""
        self._write_files()
        script = Path(__file__).with_name("cluster.sh")
        command = [*NAMESPACES, "bash", str(script), str(self.directory), str(self.nodes)]
        with (self.directory / "log" / "cluster.out").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=self._environment(), start_new_session=True
            )
        deadline = time.monotonic() + timeout
        while self._idle_nodes() < self.nodes:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the cluster did not come up\n{self._logs()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill every process of the cluster and of its jobs; a second call does nothing."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def run(
        self,
        *command: object,
        node: str = "ctl",
        directory: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 30,
    ) -> str:
        """The standard output of a command run on a node, or on the controller's host `ctl`."""
        assert self._process is not None, "the cluster is not running"
        enter = _enter(str(self._process.pid))
        if node != "ctl":
            enter += _enter((self.directory / f"{node}.pid").read_text().strip())
        done = subprocess.run(
            [*enter, "env", "-C", str(directory or Path.cwd()), *map(str, command)],
            env=self._environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def submit(
        self,
        script: Path,
        *arguments: object,
        options: Iterable[str] = (),
        directory: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Submit a batch script from `directory` with sbatch's `options`; the job's id."""
        return self.run("sbatch", "--parsable", *options, script, *arguments, directory=directory, env=env)

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, ExitCode, StdOut, ..."""
        shown: dict[str, str] = {}
        for key, value in re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "show", "job", "--oneliner", job)):
            shown.setdefault(key, value)
        return shown

    def state(self, job: str) -> str:
        """The job's state in SLURM's words, such as RUNNING."""
        return self.show(job)["JobState"]

    def wait(self, job: str, states: Iterable[str] = ("COMPLETED",), timeout: float = 60) -> str:
        """Return the first of `states` the job reaches; fail with the job's output when it ends or hangs in another."""
        states = tuple(states)
        deadline = time.monotonic() + timeout
        while (state := self.state(job)) not in states:
            if state in ENDED or time.monotonic() > deadline:
                raise AssertionError(f"job {job} is {state}, not {' or '.join(states)}\n{self.output(job)}")
            time.sleep(0.2)
        return state

    def output(self, job: str) -> str:
        """What the job has written so far."""
        path = Path(self.show(job)["StdOut"])
        return path.read_text() if path.exists() else ""

    def power_off(self, node: str) -> None:
        """End everything on a node at once and cut it off, without a word to anybody."""
        self.cut_link(node)
        # a sibling in the namespace of the cluster: the first process of the node, and with it all others, is killed
        self.run("kill", "-KILL", (self.directory / f"{node}.pid").read_text().strip())

    def cut_link(self, node: str) -> None:
        """Take away a node's network; nobody is told, packets are lost."""
        self.run("ip", "link", "set", f"veth{node.removeprefix('n')}", "down")

    def restore_link(self, node: str) -> None:
        """Give a node its network back."""
        self.run("ip", "link", "set", f"veth{node.removeprefix('n')}", "up")

    def stop_controller(self) -> None:
        """End SLURM's controller, which saves its state first; jobs go on."""
        pid = (self.directory / "slurmctld.pid").read_text().strip()
        self.run("bash", "-c", f"kill {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.1; done")

    def start_controller(self) -> None:
        """Start it again, with the state it had; returns when it answers."""
        self.run("slurmctld")
        self.run("bash", "-c", "until scontrol ping; do sleep 0.1; done")

    def _write_files(self) -> None:
        for name in ("log", "state", "munge"):
            (self.directory / name).mkdir()
        user = pwd.getpwuid(os.geteuid()).pw_name
        conf = SLURM_CONF.format(
            directory=self.directory,
            user=user,
            nodes=self.nodes,
            gpus=self.gpus,
            slurmd_timeout=self.slurmd_timeout,
        )
        (self.directory / "slurm.conf").write_text(conf)
        gpus = [self.directory / f"gpu{number}" for number in range(self.gpus)]
        for gpu in gpus:
            gpu.touch()
        (self.directory / "gres.conf").write_text("".join(f"Name=gpu File={gpu}\n" for gpu in gpus))
        hosts = ["127.0.0.1 localhost", "10.77.0.254 ctl"]
        hosts += [f"10.77.0.{number} n{number}" for number in range(1, self.nodes + 1)]
        (self.directory / "hosts").write_text("\n".join(hosts) + "\n")

    def _environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        outer = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        return {**outer, "SLURM_CONF": str(self.directory / "slurm.conf"), **(env or {})}

    def _idle_nodes(self) -> int:
        try:
            return int(self.run("sinfo", "--noheader", "--states=idle", "--format=%D", timeout=5) or 0)
        except (RuntimeError, subprocess.TimeoutExpired):
            return 0

    def _logs(self) -> str:
        logs = sorted((self.directory / "log").iterdir())
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-1000:]}" for log in logs)


def _enter(unshare_pid: str) -> list[str]:
    """The prefix of a command that is to run in the namespaces that `unshare` made for its child."""
    process_namespace = f"--pid=/proc/{unshare_pid}/ns/pid_for_children"
    return ["nsenter", f"--target={unshare_pid}", "--net", "--mount", "--uts", process_namespace]
