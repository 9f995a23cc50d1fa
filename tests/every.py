"""Checks that cannot pass for want of something to check."""

from collections.abc import Iterable


def every(values: Iterable[object]) -> bool:
    """Is ``all``, and fails where there is nothing: then nothing was checked."""
    checked = list(values)
    assert checked, "nothing to check"
    return all(checked)
