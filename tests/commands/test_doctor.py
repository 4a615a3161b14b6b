import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from nar_scale.commands.doctor import machine
from nar_scale.commands.doctor.machine import examine

LAUNCHER = Path(__file__).parents[2] / "launcher" / "doctor.py"


def remedies(directory):
    return {finding.name: finding.remedy for finding in examine(directory) if finding.remedy}


def test_what_is_looked_at(tmp_path):
    findings = {finding.name: finding for finding in examine(tmp_path)}
    assert {"Python", "torch", "deepspeed", "C++ compiler", "open files", "memory", "CPUs", "host name"} <= set(
        findings
    )
    assert sys.executable in findings["Python"].found
    assert "GiB free" in findings[str(tmp_path)].found
    assert "moto" not in findings  # which only the tests need


def test_what_is_lacking_comes_with_a_remedy(tmp_path, monkeypatch):
    def version(name):
        if name == "deepspeed":
            raise PackageNotFoundError
        return "0.1" if name == "webdataset" else real(name)

    def unknown(*arguments):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    real = machine.version
    monkeypatch.setattr(machine, "version", version)
    monkeypatch.setattr(machine.shutil, "which", lambda *arguments, **options: None)
    monkeypatch.setattr(machine.socket, "getaddrinfo", unknown)
    monkeypatch.setattr(machine.resource, "getrlimit", lambda what: (1024, 65536))
    found = remedies(tmp_path)
    assert "deepspeed" in found["deepspeed"]
    assert ">=1.0" in found["webdataset"]
    assert "compiler" in found["C++ compiler"]
    assert "4096" in found["open files"]
    assert socket.gethostname() in found["host name"]


@pytest.mark.parametrize("directory", [".", "nowhere"])
def test_the_command(tmp_path, directory):
    command = [sys.executable, str(LAUNCHER), "--directory", str(tmp_path / directory)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if directory == "nowhere":
        assert result.returncode == 2
        assert "nowhere" in result.stderr
    else:
        assert result.returncode in (0, 1)
        assert (result.returncode == 1) == any(line.startswith("-> ") for line in result.stdout.splitlines())
        assert "torch: " in result.stdout
