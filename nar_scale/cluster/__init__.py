"""A job on a cluster, seen from its batch script: how it is started, supervised, and put back into the queue.

`python -m nar_scale.cluster train CONFIG [...]` or `generate [...]` runs beside the tasks, on the first node of a SLURM
job. Tasks and supervisor exchange files in a directory that all nodes see (`endings`): no connection is needed to learn
how a rank or a worker has ended.
"""
