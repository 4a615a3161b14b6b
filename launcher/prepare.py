"""`nar-scale prepare`; see nar_scale/commands/prepare."""

from _command import run_command

if __name__ == "__main__":
    run_command("prepare")
