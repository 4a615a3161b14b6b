"""`nar-scale report`; see nar_scale/commands/report.py."""

from _command import run_command

if __name__ == "__main__":
    run_command("report")
