"""A training job on a cluster, seen from its batch script: how it is started, supervised, and put back into the queue.

`python -m nar_scale.cluster CONFIG [...]` runs beside the ranks, on the first node of a SLURM job. Ranks and supervisor
exchange files in a directory that all nodes see (`endings`): no connection is needed to learn how a rank has ended.
"""
