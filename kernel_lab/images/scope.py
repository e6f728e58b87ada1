"""Which variables the instructions of a Dockerfile see, and whence their values: ARG, ENV, `--build-arg` and those that every build has.

docs.docker.com/reference/dockerfile, "ARG" and "Environment replacement". An ARG before the first FROM is seen by FROM, and in a stage only where the
stage declares it again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kernel_lab.images import platforms
from kernel_lab.images.descriptor import Platform
from kernel_lab.images.expansion import Rules, expand
from kernel_lab.images.instructions import Arg, Env
from kernel_lab.kernel.errors import UsageError

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
DEFAULT_STAGE = "default"  # TARGETSTAGE where no target was asked for


@dataclass
class Scope:
    """What is set at some place of a Dockerfile.

    given: what was asked for with `--build-arg`. outer: values for names that are declared without a default. variables: all that is set here, by ARG
    and ENV, of which the later counts. declared: the names of ARG so far.
    """

    given: Mapping[str, str]
    outer: Mapping[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    declared: list[str] = field(default_factory=list)

    def declare(self, arg: Arg) -> None:
        """Carries out an ARG. Raises UsageError for a default that cannot be expanded, if it is needed."""
        for name, default in arg.defaults:
            value = self.given.get(name)
            if value is None:
                value = self.outer.get(name) if default is None else self._expanded(arg, default)
            if value is not None:
                self.variables[name] = value
            if name not in self.declared:
                self.declared.append(name)

    def set(self, env: Env) -> Env:
        """Carries out an ENV, and gives it back expanded."""
        expanded = env.expanded(self.variables)
        self.variables.update(expanded.pairs)
        return expanded

    def stage(self, environment: Mapping[str, str]) -> "Scope":
        """The scope of a stage upon an image with this environment; this one is that of FROM."""
        return Scope(self.given, dict(self.variables), dict(environment))

    def inherited(self) -> "Scope":
        """The scope of a stage upon this one's: what ARG has declared here is declared there."""
        return Scope(self.given, self.outer, dict(self.variables), list(self.declared))

    def arguments(self) -> dict[str, str]:
        """What ARG has declared, with the values as they are now; docker writes them before a RUN in an image's history."""
        return {name: self.variables.get(name, "") for name in self.declared}

    def _expanded(self, arg: Arg, default: str) -> str:
        try:
            return expand(default, self.variables, Rules(arg.statement.escape))
        except UsageError as error:
            raise arg.wrong(str(error)) from None


def first(args: Iterable[Arg], given: Mapping[str, str], predefined: Mapping[str, str]) -> Scope:
    """The scope of FROM: the ARGs before the first one, upon what is predefined."""
    scope = Scope(given, variables=dict(predefined))
    for arg in args:
        scope.declare(arg)
    return scope


def predefined(target: Platform, build: Platform, stage: str | None = None) -> dict[str, str]:
    """The variables that FROM sees in every build, and a stage that declares them: TARGETPLATFORM, BUILDARCH and so on."""
    values = {"TARGETSTAGE": stage or DEFAULT_STAGE}
    for prefix, platform in (("BUILD", build), ("TARGET", target)):
        values |= {
            f"{prefix}PLATFORM": platforms.words(platform),
            f"{prefix}OS": platform.os,
            f"{prefix}ARCH": platform.architecture,
            f"{prefix}VARIANT": platform.variant or "",
        }
    return values


def proxies(given: Mapping[str, str]) -> dict[str, str]:
    """What RUN finds in its environment without any ARG, under both spellings. It is in no history, so that another proxy builds the same image."""
    values = {name.upper(): value for name, value in given.items() if name.upper() in PROXIES}
    return values | {name.lower(): value for name, value in values.items()}
