"""`nar-scale train`; see nar_scale/commands/train.py."""

from _command import run_command

if __name__ == "__main__":
    run_command("train")
