"""What is other in one run than in another, in words."""

import os


def differences(before: dict, now: dict, partly: bool, prefix: str = "") -> list[str]:
    """Return a line for every setting that is another now; `partly`: keys that only the old ones have do not count."""
    found = []
    for key, value in now.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            # A key that only the old table has counts, too.
            value = value if partly else {**dict.fromkeys(old), **value}
            found += differences(old, value, partly, f"{prefix}{key}.")
        elif old != value:
            found.append("{}{} was {}, now {}".format(prefix, key, *from_where_they_differ(old, value)))
    return found


def from_where_they_differ(*values) -> list[str]:
    """Return values as short texts that begin a little before they differ."""
    texts = [repr(value) for value in values]
    start = len(os.path.commonprefix(texts)) - 10
    longest = max(map(len, texts))
    return [_short(text if longest <= 40 or start <= 10 else f"...{text[start:]}") for text in texts]


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
