"""CgroupNS: the container's own cgroup looks like the root of the tree (cgroup_namespaces(7))."""

from collections.abc import Iterable

from kernel_lab.kernel.flags import CLONE
from kernel_lab.kernel.program import Row, call
from kernel_lab.namespaces.part import Part, Plan


class CgroupNS(Part):
    """A cgroup namespace. Its root is the cgroup in which the process is when it asks, so it asks for it by itself, once it has been placed."""

    order = 20

    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("unshare", CLONE.NEWCGROUP, why="make the cgroup that it is in now the root of what it sees")
