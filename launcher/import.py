"""`nar-scale import`; see nar_scale/commands/import_.py."""

from _command import run_command

if __name__ == "__main__":
    run_command("import_")
