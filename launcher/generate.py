"""`nar-scale generate`; see nar_scale/commands/generate.py."""

from _command import run_command

if __name__ == "__main__":
    run_command("generate")
