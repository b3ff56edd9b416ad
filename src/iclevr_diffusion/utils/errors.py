"""The exceptions that end a run with one line instead of a traceback."""


class UserError(Exception):
    """A mistake in the user's input: a path, a label, a config value, a file.

    Its message is one line that says what is wrong, where, and what to do. The commands print that
    line and exit with code 2.
    """


class TrainingError(Exception):
    """A training that cannot continue, although its input was right.

    Its message is one line. The commands print it and exit with code 1.
    """


class Stopped(BaseException):
    """A signal ended the run, at a point where it can be resumed.

    Its message is one line. The commands print it and exit with code 128 + ``signum``, as a shell
    reports a process that a signal ended. Like ``KeyboardInterrupt``, it is no ``Exception``: a
    signal handler raises it anywhere, and ``except Exception`` must not catch it.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
