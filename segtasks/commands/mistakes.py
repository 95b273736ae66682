"""Errors that a user can mend, told in one line."""

from __future__ import annotations

from jtlightning.cli.failures import is_mistake, show

_PACKAGES = ("jtlightning", "segtasks")


def tell_mistake(error: Exception) -> bool:
    """Print an error where its message alone says what to do.

    Returns:
        Whether it was printed; else it is a bug, which needs its traceback: raise it again.
    """
    if not is_mistake(error, _PACKAGES):
        return False
    show(error, "segtasks", packages=_PACKAGES, with_traceback=False)
    return True
