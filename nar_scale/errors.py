"""Errors that the user can fix.

Launchers print them as one line; in training `fault_tolerance.error_translation` words those of libraries likewise, and
`fault_tolerance.error_reporting` has one rank of a job print it.
"""


class UserError(Exception):
    """A problem that the user can fix: bad input, a missing file, a wrong setting.

    The message is one line that names the thing and the remedy. The scripts in `launcher/` print it
    without a traceback and exit with status 2.
    """


class ConfigError(UserError):
    """A configuration file or override that is wrong."""


class DataError(UserError):
    """A shard, sample or corpus that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written, found or loaded."""


class DivergenceError(UserError):
    """Training that has gone astray: losses, gradients or weights that are not finite, or a loss that jumps."""


class NumericalError(UserError):
    """A network that computes NaN or infinity, so that no token can be drawn."""

    def __init__(self) -> None:
        super().__init__("the network computes NaN or infinity, so that no token can be drawn; look at its weights")
