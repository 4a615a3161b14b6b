"""`nar-scale export`; see nar_scale/commands/export.py."""

from _command import run_command

if __name__ == "__main__":
    run_command("export")
