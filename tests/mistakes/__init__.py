"""Mistakes of users, each answered by one line that names the thing and the remedy.

`test_mistakes.py` runs them as the launchers are run, in forks of one process (`driver.py`) that has imported what
takes seconds. The tables: `settings.py` (YAML and overrides), `data_sets.py`, `checkpoints.py`, `generation.py`,
`machine.py`
(devices, disks, permissions, environment).
"""
