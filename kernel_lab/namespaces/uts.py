"""UTS: a host name of its own (uts_namespaces(7))."""

import os
from collections.abc import Iterable

from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.flags import CLONE
from kernel_lab.kernel.program import Row, call
from kernel_lab.namespaces.part import Part, Plan

LONGEST = 64  # __NEW_UTS_LEN in linux/utsname.h


class UTS(Part):
    """A UTS namespace, and in it a host name and, if given, a NIS domain name. Without a name it keeps the host's."""

    flags = CLONE.NEWUTS
    order = 40

    def __init__(self, hostname: str | None = None, domainname: str | None = None) -> None:
        self.hostname = hostname
        self.domainname = domainname

    def check(self, plan: Plan) -> None:
        for what, name in (("host name", self.hostname), ("domain name", self.domainname)):
            if name is None:
                continue
            if not isinstance(name, str) or not name or "\0" in name:
                raise UsageError(f"{what} {name!r}: it must be a text that is not empty and holds no NUL")
            if len(os.fsencode(name)) > LONGEST:
                raise UsageError(f"{what} {name!r}: {len(os.fsencode(name))} bytes long; the kernel keeps at most {LONGEST} (sethostname(2))")

    def rows(self, plan: Plan) -> Iterable[Row]:
        if self.hostname is not None:
            yield call("sethostname", self.hostname, len(os.fsencode(self.hostname)), why="name the new UTS namespace")
        if self.domainname is not None:
            yield call("setdomainname", self.domainname, len(os.fsencode(self.domainname)), why="and its domain")
