"""The one error that bad input raises: what was expected, what arrived, what to do."""


class InputError(ValueError):
    """Bad input, said in one line: what was expected, what arrived and what to do.

    The command line prints it and leaves with exit code 2; anything else that is raised is a defect of voxplain.
    """
