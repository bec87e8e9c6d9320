"""The errors of a run that are a user's to mend: the command prints them, without a traceback.

Apart from what raises them, so that the command can name them before it imports pandas.
"""


class StoreError(RuntimeError):
    """The run folder cannot be used: in use by another run, not writable, or the disk is full."""


class CellsFailed(RuntimeError):
    """Some cells raised. `tracebacks` has the text of each, by the cell's name."""

    def __init__(self, message: str, tracebacks: dict[str, str]) -> None:
        super().__init__(message)
        self.tracebacks = tracebacks
