"""The one exception for what a user wrote wrong; ``nas.cli`` prints it as one line and exits with 2."""


class UserError(ValueError):
    """The message is one line that names the file, key and value, and says what to do."""
