from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_models import NAMES, write

from bench.crew import Crew
from executor.group import Group
from executor.groups import Groups, Member

# Cores are shared with the crew.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    """Four workers on one machine, with gloo."""
    crew = Crew(4)
    yield crew
    crew.close()


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    """A group of one: this process."""
    groups = Groups()
    yield groups.get(1, [Member(0, groups.store_address)], "alone")
    groups.close()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of small models in the layout of each family, by name."""
    folder: Path = tmp_path_factory.mktemp("models")
    return {name: write(folder / name, name) for name in NAMES}
