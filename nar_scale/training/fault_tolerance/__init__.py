"""Divergence, hangs, preemption and errors: what is detected, and how a run ends or goes on.

Preemption goes this way: SLURM signals the batch script, which creates the stop file; `preemption.StopRequest` of rank
0 sees it (or any rank receives a signal); `Trainer.train_step` sums the requests of all ranks (`StopAgreement`), and
`interruption` cuts evaluation and sampling short; `Checkpointer.on_run_end` saves; the process exits with
`RESUMABLE_EXIT_STATUS`, on which `nar_scale.cluster.supervisor` asks for a requeue.

An error goes this way: `error_translation` words what torch, DeepSpeed and the system raise as `nar_scale.errors`,
`training.launch` catches it, and `error_reporting` has one rank of the job write it.
"""
