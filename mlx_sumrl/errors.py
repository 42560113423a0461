"""The one exception that is the user's to mend."""


class UserError(Exception):
    """A wrong option, file, row, server or weight file.

    Its message is one sentence that names the thing, the value and the way out. Recipes print it without a
    traceback and leave with exit code 2; nothing has been trained and nothing written is lost.
    """
