"""The one kind of error that users see as a sentence instead of a traceback."""


class UserError(ValueError):
    """Bad input: the message is one clear sentence naming the input and the remedy; the command line exits with 2."""


def nearest(name: str, known: list[str]) -> str:
    """' Did you mean X?' for the known name closest to ``name``, '' where none is close."""
    from difflib import get_close_matches

    found = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {found[0]}?" if found else ""
