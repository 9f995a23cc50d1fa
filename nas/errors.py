"""Defines the one exception for what a user wrote wrong; ``nas.cli`` prints it as one line and exits with 2."""


class UserError(ValueError):
    """Says in one line what the user has to change: it names the file, key and value, and what to do.

    ``key`` is the setting at fault (``data``, ``train.augment``), where it is one: the command line calls it as it was
    typed, ``--data`` or ``data=`` or the file that it stands in. The message is ``before``, key, ``text``.
    """

    def __init__(self, text: str, key: str | None = None, before: str = "") -> None:
        self.text, self.key, self.before = text, key, before
        super().__init__(self.calling(key))

    def calling(self, name: str | None) -> str:
        """Returns the message with the setting called ``name``."""
        colon = "" if name is None or self.text.startswith(" ") else ": "
        return f"{self.before}{name or ''}{colon}{self.text}"
