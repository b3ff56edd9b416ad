"""The one exception for a user's mistake."""


class UserError(Exception):
    """A mistake in what the user gave: a path, a label, a config value, a file.

    Its message is one line that says what is wrong, where, and what to do. The doors print that
    line and exit with code 2, without a traceback.
    """
