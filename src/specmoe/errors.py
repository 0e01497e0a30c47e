"""The errors that specmoe raises: one family, one clear sentence each."""


class SpecmoeError(Exception):
    """Something went wrong that the user can understand and act on; the message is one sentence.

    It says what was wrong, what was expected and what to do. The command line prints it and exits with `exit_code`.
    """

    exit_code = 1
    # True for an error that only the raising process knows of, in a run of several processes.
    one_process_only = False


class UsageError(SpecmoeError, ValueError):
    """An argument of the caller's is wrong (the command line exits with 2)."""

    exit_code = 2


class ArtifactError(SpecmoeError):
    """A file is damaged, of an unknown format, or holds a shape or value that does not fit."""


class MismatchError(SpecmoeError):
    """Two inputs do not belong together: a plan for another model, a profile of another checkpoint."""


class CheckpointError(SpecmoeError):
    """A model checkpoint is not one, is damaged, or is of a kind that specmoe does not handle."""


class OutputError(SpecmoeError):
    """An output could not be written: it exists already, the disk is full, the folder is missing."""


class InfeasibleError(SpecmoeError):
    """No placement meets all constraints; the message names the contradiction and by how much."""
