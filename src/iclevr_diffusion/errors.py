"""The exceptions that end a run with one line instead of a traceback."""


class UserError(Exception):
    """A mistake in what the user gave: a path, a label, a config value, a file.

    Its message is one line that says what is wrong, where, and what to do. The doors print that
    line and exit with code 2.
    """


class TrainingError(Exception):
    """A training that cannot go on, though nothing was wrong with what it was given.

    Its message is one line. The doors print it and exit with code 1.
    """
