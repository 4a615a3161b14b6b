"""Divergence, hangs, preemption and errors: what is detected, and how a run ends or goes on."""
