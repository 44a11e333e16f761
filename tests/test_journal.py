"""What was accepted is on disk, in order, and survives a restart."""

import pytest

from scheduler.journal import Journal, JournalError
from tetriserve.v1 import types_pb2


def status(request_id: str, stage: types_pb2.Stage = types_pb2.STAGE_QUEUED) -> types_pb2.RequestStatus:
    return types_pb2.RequestStatus(request=types_pb2.Request(id=request_id), stage=stage)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def test_a_request_survives_a_restart(folder):
    journal = Journal(folder)
    journal.add(status("a"))
    journal.add(status("b"))
    journal.update(status("a", types_pb2.STAGE_DONE))
    journal.close()
    journal = Journal(folder)
    assert [s.request.id for s in journal.outstanding()] == ["b"]
    found = journal.get("a")
    assert found is not None
    assert found.stage == types_pb2.STAGE_DONE
    assert journal.get("c") is None


def test_an_id_is_taken_once(folder):
    journal = Journal(folder)
    journal.add(status("a"))
    with pytest.raises(KeyError):
        journal.add(status("a"))


def test_a_folder_has_one_scheduler(folder):
    journal = Journal(folder)
    journal.add(status("a"))
    with pytest.raises(JournalError, match="another scheduler"):
        Journal(folder)


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError) as raised:
        Journal(tmp_path / "file" / "data")
    assert str(raised.value) == f"{tmp_path}/file/data/images: Not a directory"


def test_pages_go_from_the_newest_to_the_oldest(folder):
    journal = Journal(folder)
    for number in range(5):
        journal.add(status(f"r{number}", types_pb2.STAGE_DONE if number % 2 else types_pb2.STAGE_QUEUED))
    first = journal.page(None, [], 2)
    assert [s.request.id for _, s in first] == ["r4", "r3"]
    second = journal.page(first[-1][0], [], 10)
    assert [s.request.id for _, s in second] == ["r2", "r1", "r0"]
    assert [s.request.id for _, s in journal.page(None, [types_pb2.STAGE_DONE], 10)] == ["r3", "r1"]


def test_the_furthest_checkpoint_counts(folder):
    journal = Journal(folder)
    assert journal.checkpoint("a") is None
    journal.save_checkpoint("a", 4, b"four")
    journal.save_checkpoint("a.1", 7, b"of another request")
    journal.save_checkpoint("a", 9, b"nine")
    found = journal.checkpoint("a")
    assert found is not None
    step, path = found
    assert (step, path.read_bytes()) == (9, b"nine")
    journal.drop_checkpoints("a")
    assert journal.checkpoint("a") is None
    assert journal.checkpoint("a.1") is not None


def test_an_image_is_whole_or_absent(folder):
    journal = Journal(folder)
    journal.save_image("a", b"picture")
    assert journal.image("a").read_bytes() == b"picture"
    assert [path.name for path in journal.image("a").parent.iterdir()] == ["a.png"]
