"""What the user gave is wrong: said in one line, never as a traceback."""


class InputError(ValueError):
    """Bad input from outside (a file, an option, an argument).

    The message is one line that names the place (file, line, field) and what was expected; the command lines print it
    on standard error and exit with status 2.
    """
