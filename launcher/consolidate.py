"""`nar-scale consolidate`; see nar_scale/commands/consolidate.py."""

from _command import run_command

if __name__ == "__main__":
    run_command("consolidate")
