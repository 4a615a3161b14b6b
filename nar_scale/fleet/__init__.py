"""Work units on a shared file system: claimed with a lease, their results kept as they are made, committed once.

Any number of workers on any hosts share a directory, without a server; docs/fleet.md is the protocol. What a unit is
about is not known here: neither models nor torch are loaded.

work       a worker: claims units, has them made, commits them
claims     who holds which unit, and whose lease is over
journal    the results of a unit that is not finished
parts      the finished units, as files
status     how far the work is            merge     all parts as one file, or as shards
"""

from nar_scale.fleet.claims import Claim, Units
from nar_scale.fleet.directory import SharedDirectory
from nar_scale.fleet.holder import Holder
from nar_scale.fleet.merge import merge
from nar_scale.fleet.parts import FORMATS, Layout
from nar_scale.fleet.record import claim_output, read_record
from nar_scale.fleet.status import Status, read_status
from nar_scale.fleet.stopping import Stopped, StopSignals
from nar_scale.fleet.work import Worker

__all__ = [
    "FORMATS",
    "Claim",
    "Holder",
    "Layout",
    "SharedDirectory",
    "Status",
    "StopSignals",
    "Stopped",
    "Units",
    "Worker",
    "claim_output",
    "merge",
    "read_record",
    "read_status",
]
