"""The one exception a person sees as a sentence instead of a traceback."""


class UserError(Exception):
    """Something about the request or the machine that its user can mend.

    The message is one sentence that names the file or value, what is wrong with it and what to do. The command line
    prints it and exits with status 2.
    """
