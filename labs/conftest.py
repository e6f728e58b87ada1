"""How pytest compares the notebooks here (nbval): patiently, and without the cells whose tool this machine lacks."""

import pytest

from kernel_lab.course.needs import missing

OUTPUT_SECONDS = 60  # nbval's own 5 are short for a busy machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is None:
            continue
        item.output_timeout = OUTPUT_SECONDS
        needs = [tag.partition(":")[2] for tag in cell.metadata.get("tags", []) if tag.startswith("needs:")]
        for need, mend in missing(*needs).items():
            item.add_marker(pytest.mark.skip(reason=f"needs {need}: {mend}"))
