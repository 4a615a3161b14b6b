"""`nar-scale doctor`; see nar_scale/commands/doctor.py."""

from _command import run_command

if __name__ == "__main__":
    run_command("doctor")
