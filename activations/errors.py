"""The one exception that bad input raises."""


class UserError(Exception):
    """Input that the user can mend: the message is one sentence with what is wrong, where, and the remedy.

    The command line prints it and exits with code 2; a notebook sees it as an ordinary exception.
    """
