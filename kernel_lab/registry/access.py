"""Who may do what in a registry.

A user may do everything. Anybody else may pull what is not private; and everything, where there are no users at all.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from kernel_lab.kernel.errors import UsageError
from kernel_lab.registry.users import Users

PULL, PUSH, DELETE = "pull", "push", "delete"
EVERYTHING = frozenset((PULL, PUSH, DELETE))
CATALOG = ("registry", "catalog")

Scope = tuple[str, str]  # what kind of thing, and its name: ("repository", "lab/busybox")


@dataclass(frozen=True)
class Caller:
    """Who asks: a user or anybody (None), and what a token allows; without a token, all that the user may do."""

    access: "Access"
    user: str | None = None
    granted: Mapping[Scope, frozenset[str]] | None = None

    def may(self, action: str, repository: str) -> bool:
        # What is open to all needs no token: a mount names a second repository, for which clients seldom ask one.
        allowed = self.access.allowed(None, repository)
        if self.granted is None or self.granted.get(("repository", repository), frozenset()) & {action, "*"}:
            allowed |= self.access.allowed(self.user, repository)
        return action in allowed

    @property
    def may_list_all(self) -> bool:
        """The names of private repositories, too."""
        return self.access.is_user(self.user) and (self.granted is None or "*" in self.granted.get(CATALOG, ()))


class Access:
    """The rules of one registry. `private` are patterns of repositories' names: `lab/*`, or `*` for all; `public` are exceptions from them.

    Raises UsageError for private repositories without users, who alone could reach them.
    """

    def __init__(self, users: Users, private: Iterable[str], public: Iterable[str]) -> None:
        self.users, self.private, self.public = users, tuple(private), tuple(public)
        if self.private and not users:
            raise UsageError(f"private: {', '.join(self.private)}: only users may pull what is private, and this registry has none; give it some")

    def is_user(self, name: str | None) -> bool:
        """Anybody is one, where there are none."""
        return name in self.users if self.users else True

    def is_private(self, repository: str) -> bool:
        return _matches(repository, self.private) and not _matches(repository, self.public)

    def allowed(self, user: str | None, repository: str) -> frozenset[str]:
        if self.is_user(user):
            return EVERYTHING
        return frozenset() if self.is_private(repository) else frozenset((PULL,))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
