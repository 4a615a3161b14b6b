"""`nar-scale harness`; see nar_scale/commands/harness.py."""

from _command import run_command

if __name__ == "__main__":
    run_command("harness")
