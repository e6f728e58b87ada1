"""Rows of named columns that print as a table, and in a notebook as one too."""

from typing import Any, TypeVar

from tabulate import tabulate

R = TypeVar("R", bound=tuple[Any, ...])


class Table(tuple[R, ...]):
    """Rows, each a NamedTuple of one kind whose fields are the columns."""

    def _printed(self, form: str) -> str:
        if not self:
            return "nothing"
        headers = [name.replace("_", " ") for name in self[0]._fields]  # type: ignore[attr-defined]
        return tabulate(list(self), headers, tablefmt=form, disable_numparse=True)

    def __repr__(self) -> str:
        return self._printed("simple")

    def _repr_html_(self) -> str:
        return self._printed("html")
