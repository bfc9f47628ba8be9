"""The one exception that a person at a terminal is meant to read."""


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what would work.

    Command-line programs print it without a traceback and exit with status 1.
    """


class Preempted(Exception):
    """The program was told to end (SIGTERM, Ctrl-C) and has saved what it had; exit status 143."""
