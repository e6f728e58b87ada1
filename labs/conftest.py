"""How pytest compares the notebooks here (nbval): patiently, over sockets of its own, and without the cells whose tool this machine lacks."""

import nbval.kernel
import pytest
from jupyter_client.manager import KernelManager

from kernel_lab.course.execute import sockets
from kernel_lab.course.needs import missing

OUTPUT_SECONDS = 60  # nbval's own 5 are short for a busy machine


class Manager(KernelManager):
    """nbval asks for a kernel on TCP ports."""

    def __init__(self, **settings: object) -> None:
        self.place = sockets()
        super().__init__(transport="ipc", connection_file=f"{self.place.name}/k", **settings)


nbval.kernel.KernelManager = Manager


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is None:
            continue
        item.output_timeout = OUTPUT_SECONDS
        needs = [tag.partition(":")[2] for tag in cell.metadata.get("tags", []) if tag.startswith("needs:")]
        for need, mend in missing(*needs).items():
            item.add_marker(pytest.mark.skip(reason=f"needs {need}: {mend}"))
