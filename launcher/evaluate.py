"""`nar-scale evaluate`; see nar_scale/commands/evaluate.py."""

from _command import run_command

if __name__ == "__main__":
    run_command("evaluate")
