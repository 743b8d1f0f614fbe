"""What a user decides about the groups: which stay whole, which are let go, which share a width."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

from autoslim.errors import ConfigError


@dataclass(frozen=True)
class Choices:
    """A user's decisions; every entry is a name, or a pattern with `*`, of groups (or their members) or of modules.

    Attributes:
        include: only channels produced inside these modules are slimmed.
        exclude: channels produced inside these modules are not slimmed.
        freeze: groups that keep their full width.
        release: groups that are slimmed though one of the above, or the network's output, would keep them whole.
        tie: rows of groups that get one width.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    tie: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, given: Mapping) -> "Choices":
        """Read decisions from keywords or JSON; a single name may stand for a row of one.

        Raises:
            ConfigError: a key is unknown, or an entry is no name.
        """
        known = [field.name for field in fields(cls)]
        for key in given:
            if key not in known:
                raise ConfigError(f"unknown choice {key!r}; write one of {', '.join(known)}")
        rows = {key: _row(key, value) for key, value in given.items() if key != "tie"}
        ties = given.get("tie") or ()
        ties = [ties] if isinstance(ties, str) else ties
        ties = [ties] if _is_row_of_names(ties) else ties
        rows["tie"] = tuple(_row("tie", row.split(",") if isinstance(row, str) else row) for row in ties)
        for row in rows["tie"]:
            if not row or (len(row) == 1 and "*" not in row[0]):
                raise ConfigError(f"tie {','.join(row)!r} names one group; write at least two, as a,b")
        return cls(**rows)

    def to_json(self) -> dict:
        """Return the decisions that were made."""
        return {key: [list(r) if isinstance(r, tuple) else r for r in row] for key, row in asdict(self).items() if row}


def _is_row_of_names(value) -> bool:
    return isinstance(value, (tuple, list)) and bool(value) and all(isinstance(v, str) and "," not in v for v in value)


def _row(key: str, value) -> tuple[str, ...]:
    row = (value,) if isinstance(value, str) else tuple(value or ()) if isinstance(value, Iterable) else (value,)
    for name in row:
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{key} holds {name!r}; write names of groups or modules, or patterns as 'features.0.*'")
    return tuple(name.strip() for name in row)
