"""A limit as what has to be written where: data, to be looked at before anything is made."""

from typing import NamedTuple


class Write(NamedTuple):
    """A text for a file of a group. `version` and `controller` say in which hierarchy the group is."""

    version: str
    controller: str
    file: str
    text: str
