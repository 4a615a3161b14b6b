"""`nar-scale plan`; see nar_scale/commands/plan.py."""

from _command import run_command

if __name__ == "__main__":
    run_command("plan")
