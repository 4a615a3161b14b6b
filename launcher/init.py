"""`nar-scale init`; see nar_scale/commands/init.py."""

from _command import run_command

if __name__ == "__main__":
    run_command("init")
