"""Groups of real processes: how they meet, fail, are dropped and replaced."""

import math
import os
import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from bench.crew import COLLECTIVE_TIMEOUT_S, Crew, Failed, Worker
from executor import rendezvous
from executor.collectives import GlooCollectives
from executor.groups import CalledOff, GroupAborted, Groups, Member
from executor.image import ImageSpec
from executor.profiler import warm_up


def add_up(
    worker: Worker, epoch: int, slots: list[int], meeting: str, own: int, timeout_s: float = 60.0
) -> int:
    """The sum of what every member brings."""
    group = worker.group(epoch, slots, meeting, timeout_s=timeout_s)
    with group.running():
        brought = [own] if group.degree == 1 else gathered(group.pg, torch.tensor([own])).tolist()
    return sum(brought)


def gathered(pg: dist.ProcessGroup, own: torch.Tensor) -> torch.Tensor:
    everything = own.new_empty(pg.size() * own.numel())
    dist.all_gather_single(everything, own, group=pg)
    return everything


def sums(crew: Crew, slots: list[int], meeting: str, epoch: int = 1) -> list[int]:
    jobs = {slot: (add_up, (epoch, slots, meeting, 10**slot)) for slot in slots}
    return [crew.run(jobs)[slots[0]]]


def total(slots: list[int]) -> int:
    return sum(10**slot for slot in slots)


def test_members_with_different_histories_find_each_other(crew):
    for turn, slots in enumerate([[0, 1], [0, 2], [1, 3], [3, 2, 1, 0], [1, 0], [2, 0, 1], [0, 1], [3]]):
        assert sums(crew, slots, f"histories {turn}") == [total(slots)]


def test_groups_of_disjoint_members_are_made_at_the_same_time(crew):
    for turn in range(5):
        jobs = {
            slot: (add_up, (5 + turn, slots, "disjoint", 10**slot))
            for slots in ([0, 1], [2, 3])
            for slot in slots
        }
        assert crew.run(jobs) == {0: 11, 1: 11, 2: 1100, 3: 1100}


def listening_addresses(_: Worker) -> list[str]:
    """The local addresses of this process's listening TCP sockets, as the kernel writes them."""
    own = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            own.add(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    found = []
    for file in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        with open(file) as lines:
            rows = [line.split() for line in lines][1:]
        found += [row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/net/tcp"), reason="reads Linux's list of sockets")
def test_nothing_listens_beyond_the_given_host(crew):
    sums(crew, [0, 1, 2, 3], "listening")
    for addresses in crew.all([0, 1], listening_addresses):
        assert len(addresses) >= 2  # the store and gloo
        assert set(addresses) == {"0100007F"}


def resources(worker: Worker) -> tuple[int, int, int, int]:
    worker.groups._close_ended()
    return (
        len(worker.groups),
        len(os.listdir("/proc/self/task")),
        len(os.listdir("/proc/self/fd")),
        worker.groups._server.store.num_keys(),
    )


def set_limit(worker: Worker, limit: int) -> int:
    before, worker.groups._limit = worker.groups._limit, limit
    return before


def test_groups_are_bounded_and_leave_nothing_behind(crew):
    # Only worker 0 forgets: the others must notice, each time, that their group is gone.
    (before,) = crew.all([0], set_limit, 2)
    slots = [[0, 1], [0, 2], [0, 3], [0, 1, 2], [2, 0], [0, 1, 2, 3]]
    try:
        sizes = []
        for turn in range(4):
            for members in slots:
                assert sums(crew, members, f"bounded {turn}") == [total(members)]
            sizes.append(crew.all([0, 1], resources))
        assert sizes[-1][0][0] == 2
        # The first turn makes what the others make anew.
        for early, late in zip(sizes[1], sizes[-1], strict=True):
            assert late == early
    finally:
        crew.all([0], set_limit, before)


def talk(worker: Worker, slots: list[int], meeting: str, words: int) -> list[bytes]:
    group = worker.group(1, slots, meeting)
    if group.leads:
        for i in range(words):
            group.publish(f"step/{i}", f"{meeting} {i}".encode())
        return []
    return [group.read(f"step/{i}", 10) for i in range(words)]


def test_members_read_what_their_leader_publishes(crew):
    keys = []
    for turn in range(10):
        heard = crew.all([2, 0, 1], talk, [2, 0, 1], f"talk {turn}", 20)
        assert heard[1] == heard[2] == [f"talk {turn} {i}".encode() for i in range(20)]
        keys.append(crew.all([2], resources)[0][3])
    assert keys[-1] == keys[1], "keys pile up"


def listen(worker: Worker, slots: list[int], meeting: str, timeout_s: float) -> None:
    worker.group(1, slots, meeting).read("never said", timeout_s)


def nothing(worker: Worker, slots: list[int], meeting: str) -> None:
    worker.group(1, slots, meeting)


def test_a_leader_that_says_nothing_is_named(crew):
    answers = crew.run({0: (nothing, ([0, 1], "mute")), 1: (listen, ([0, 1], "mute", 0.3))}, check=False)
    assert (answers[1].kind, answers[1].lost) == ("GroupAborted", (0,))
    assert sums(crew, [0, 1], "mute no more") == [11]


def test_what_a_member_wrote_before_it_left_counts():
    """It writes and leaves between two looks of who waits for it."""

    class Store:
        written = False

        def compare_set(self, _: str, nothing: str, __: str) -> bytes:
            before, self.written = self.written, True
            return b"so long" if before else nothing.encode()

    store = Store()
    gone = lambda: GroupAborted("a member has left") if store.written else None  # noqa: E731
    assert rendezvous.wait(store, ["word"], 5, lambda: None, gone) == [b"so long"]
    store.compare_set = lambda _, nothing, __: nothing.encode()
    with pytest.raises(GroupAborted, match="left"):
        rendezvous.wait(store, ["word"], 5, lambda: None, gone)


def publish_as_member(worker: Worker, slots: list[int]) -> None:
    worker.group(1, slots, "usurper").publish("key", b"")


def test_only_the_leader_publishes(crew):
    answers = crew.all([0, 1], publish_as_member, [0, 1], check=False)
    assert answers[0] is None
    assert answers[1].kind == "RuntimeError"
    assert "does not lead" in answers[1].text


@pytest.mark.parametrize("missing", [2, 0, 1])
def test_who_does_not_come_to_the_meeting_is_named(crew, missing):
    slots = [0, 1, 2]
    jobs = {s: (add_up, (1, slots, f"without {missing}", 1, 0.5)) for s in slots if s != missing}
    for answer in crew.run(jobs, check=False).values():
        assert (answer.kind, answer.lost) == ("GroupAborted", (missing,))
    assert sums(crew, slots, f"with {missing}") == [total(slots)]


def call_off(worker: Worker, slots: list[int], meeting: str, after_s: float = 0.0) -> None:
    time.sleep(after_s)
    worker.groups.call_off(1, [worker.members[slot] for slot in slots], meeting, "not today")


def come_but_be_called_back(worker: Worker, slots: list[int], meeting: str) -> None:
    """The leader comes, and its order is withdrawn while it waits."""
    looks = iter(range(20))

    def check() -> None:
        if next(looks, None) is None:
            raise CalledOff("not today")

    worker.group(1, slots, meeting, check=check)


@pytest.mark.parametrize("who", ["member", "leader", "leader while it waits"])
def test_a_meeting_is_called_off_without_harm_to_the_group(crew, who):
    slots = [1, 0, 2]
    assert sums(crew, slots, f"before {who}") == [total(slots)]
    jobs = dict.fromkeys(slots, (add_up, (1, slots, f"off {who}", 1)))
    if who == "leader while it waits":
        jobs[1] = (come_but_be_called_back, (slots, f"off {who}"))
        del jobs[2]
    else:
        jobs[slots[0] if who == "leader" else 2] = (call_off, (slots, f"off {who}", 0.2))
    answers = crew.run(jobs, check=False)
    came = [answer for answer in answers.values() if answer is not None]
    assert len(came) == 2
    assert {(answer.kind, answer.text) for answer in came} == {("CalledOff", "not today")}
    generation = crew.all(slots, generation_of, slots)
    assert sums(crew, slots, f"after {who}") == [total(slots)]
    assert crew.all(slots, generation_of, slots) == generation


def generation_of(worker: Worker, slots: list[int]) -> int:
    return worker.groups._groups[f"sp/e1/{'-'.join(map(str, slots))}"]._held.generation


def test_a_meeting_to_which_all_have_come_cannot_be_called_off(crew):
    slots = [0, 1]
    assert sums(crew, slots, "on") == [11]
    crew.all([0], call_off, slots, "on")
    assert crew.all([0, 1], called_off, slots, "on") == ["", ""]
    crew.all([0], call_off, slots, "off")
    assert crew.all([0, 1], called_off, slots, "off") == ["not today"] * 2


def called_off(worker: Worker, slots: list[int], meeting: str) -> str:
    return worker.groups.called_off(1, [worker.members[slot] for slot in slots], meeting)


def block_until_dropped(worker: Worker, slots: list[int], meeting: str, where: str) -> float:
    """Wait for peers that never come, and be dropped by another thread; how long that took."""
    group = worker.group(1, slots, meeting) if where != "meeting" else None
    dropped_at = []

    def drop() -> None:
        time.sleep(0.5)
        dropped_at.append(time.monotonic())
        worker.groups.drop(before_epoch=2, slots=[slots[0]])

    threading.Thread(target=drop).start()
    try:
        if where == "collective":
            with group.running():
                gathered(group.pg, torch.zeros(1))
        elif where == "reading":
            group.read("never said", COLLECTIVE_TIMEOUT_S)
        else:
            worker.group(1, slots, meeting, timeout_s=COLLECTIVE_TIMEOUT_S)
    except Exception as error:
        if type(error).__name__ != "GroupAborted":
            raise
        return time.monotonic() - dropped_at[0]
    raise AssertionError("nothing happened")


@pytest.mark.parametrize("where", ["collective", "reading", "meeting"])
def test_whoever_waits_in_a_dropped_group_is_freed(crew, where):
    slots = [3, 1]
    idle = (nothing, (slots, where)) if where != "meeting" else (resources, ())
    answers = crew.run({1: (block_until_dropped, (slots, where, where)), 3: idle})
    assert answers[1] < COLLECTIVE_TIMEOUT_S / 4
    # The slot is lost for the old epoch; a later one is another story.
    (late,) = crew.all([1], add_up, 1, slots, "too late", 1, check=False)
    assert (late.kind, late.lost) == ("GroupAborted", (3,))
    assert sums(crew, slots, f"{where} again", epoch=2) == [total(slots)]
    crew.all([1], reset)


def exchange_until_dropped(
    worker: Worker, slots: list[int], meeting: str, thousands: int, after_s: float
) -> float:
    """Exchange so many numbers again and again, until the leader drops the group; when that had an end."""
    group = worker.group(1, slots, meeting)
    if group.leads:
        threading.Timer(after_s, worker.groups.drop, (2, [slots[0]])).start()
    sent = torch.zeros(len(slots) * thousands * 1000)
    try:
        with group.running():
            while True:
                dist.all_to_all_single(torch.empty_like(sent), sent, group=group.pg)
    except GroupAborted:
        return time.time()


@pytest.mark.parametrize("thousands", [1, 16_000])
def test_whoever_is_in_the_middle_of_a_collective_is_freed(crew, thousands):
    """gloo loses what is half sent when a connection ends, however it ends."""
    slots = [3, 1]
    for turn in range(5):
        job = (exchange_until_dropped, (slots, f"{turn}", thousands, 0.2 + 0.013 * turn))
        began = time.time()
        assert max(crew.run(dict.fromkeys(slots, job)).values()) - began < COLLECTIVE_TIMEOUT_S / 4
        crew.all(slots, reset)


class Unhurried:
    """Work that is done after so many looks; the rest of what gloo has is not asked for."""

    def __init__(self, looks: float) -> None:
        self.looks = looks

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 2

    def _allgather_base(self, *_: torch.Tensor) -> "Unhurried":
        return self

    def is_completed(self) -> bool:
        return self.looks <= 0

    def wait(self, patience: timedelta | None = None) -> None:
        if patience is not None and self.looks > 0:
            self.looks -= 1
            time.sleep(0.02)
            raise RuntimeError("Operation timed out!")


def test_who_leaves_after_its_part_leaves_the_others_time_for_theirs():
    own = torch.zeros(1)
    GlooCollectives(Unhurried(5), "late", broken=lambda: True).gather(own, own)
    with pytest.raises(dist.DistNetworkError):
        GlooCollectives(Unhurried(math.inf), "never", broken=lambda: True).gather(own, own)
    aborted = GlooCollectives(Unhurried(math.inf), "aborted", broken=lambda: False)
    threading.Timer(0.1, aborted.abort).start()
    with pytest.raises(dist.DistNetworkError):
        aborted.gather(own, own)


def fail(worker: Worker, slots: list[int], meeting: str) -> None:
    with worker.group(1, slots, meeting).running():
        raise ArithmeticError("of this member")


def test_failures_leave_nothing_behind(crew):
    slots = [0, 2, 3]
    sizes = []
    for turn in range(4):
        for failing in slots:
            jobs = dict.fromkeys(slots, (add_up, (1, slots, f"failure {turn} of {failing}", 1)))
            jobs[failing] = (fail, (slots, f"failure {turn} of {failing}"))
            kinds = sorted(answer.kind for answer in crew.run(jobs, check=False).values())
            assert kinds == ["ArithmeticError", "GroupAborted", "GroupAborted"]
        assert sums(crew, slots, f"after failures {turn}") == [total(slots)]
        sizes.append(crew.all(slots, resources))
    assert sizes[-1] == sizes[0]


def reset(worker: Worker) -> None:
    worker.groups.reset()


def drop(worker: Worker, before_epoch: int, slots: list[int]) -> int:
    return worker.groups.drop(before_epoch, slots)


def test_other_groups_live_on_when_one_is_dropped(crew):
    crew.all([0, 1, 2, 3], reset)
    for epoch, slots in ((3, [0, 1]), (3, [0, 2]), (4, [1, 0])):
        sums(crew, slots, "before", epoch)
    assert crew.all([0], drop, 4, [1]) == [1]
    sums(crew, [0, 2], "after", 3)
    sums(crew, [1, 0], "after", 4)
    assert crew.all([0], resources)[0][0] == 2
    crew.all([0], reset)
    assert crew.all([0], resources)[0][0] == 0
    # After a reset, epochs and orders may count from the beginning.
    assert sums(crew, [0, 1], "before", 3) == [11]


def test_a_warm_group_is_as_the_next_order_needs_it(crew, models):
    """The order after a warm-up makes no process group any more, whatever the split."""
    for name, slots in (("4 heads", [0, 1, 2, 3]), ("6 heads", [3, 1, 0, 2]), ("5 heads", [1, 2])):
        crew.all(slots, reset)
        before, after = zip(*crew.all(slots, warm_and_step, models[name], slots), strict=True)
        assert before == after
        assert min(before) >= 1


def warm_and_step(worker: Worker, folder: str, slots: list[int]) -> tuple[int, int]:
    """Process groups of the group after it was warmed, and after a step of an order."""
    pipeline = worker.pipeline(folder)
    group = worker.group(9, slots, "warm up")
    warm_up(pipeline, group)
    before = [id(link) for link in group._links]
    again = worker.group(9, slots, "an order")
    assert again is group
    image = ImageSpec("a red house", 48, 80, 4, seed=0)
    pipeline.step([pipeline.start(image, pipeline.encode(image))], group)
    assert [id(link) for link in group._links] == before
    return len(before), len(group._links)


def test_a_group_of_a_new_epoch_takes_the_place_of_the_old_one(crew):
    crew.all([0, 1, 2, 3], reset)
    for epoch in range(1, 6):
        crew.all([0, 1], held_after, epoch, [0, 1])
        assert crew.all([0, 1, 2], held_after, epoch, [0, 1, 2]) == [2, 2, 1]


def held_after(worker: Worker, epoch: int, slots: list[int]) -> int:
    """How many groups are held after one more was asked for."""
    worker.group(epoch, slots, f"again {epoch}")
    return len(worker.groups)


def misuse(worker: Worker, slots: list[int]) -> None:
    worker.group(1, slots, "misuse")


def test_a_group_is_of_different_members_and_this_one_is_among_them(crew):
    for slots, message in (
        ([1, 2], "is not in the group"),
        ([0, 1, 1], "twice"),
        ([], "is not in the group"),
    ):
        with pytest.raises(Failed, match=message) as failure:
            crew.all([0], misuse, slots)
        assert failure.value.kind == "ValueError"


def lead_nowhere(worker: Worker, address: str) -> None:
    own = worker.groups.store_address
    worker.groups.get(1, [Member(7, address), Member(0, own)], "nowhere")


def test_a_leader_whose_store_is_gone_is_named(crew):
    for address in ("127.0.0.1:1", "nonsense"):
        (answer,) = crew.all([0], lead_nowhere, address, check=False)
        assert (answer.kind, answer.lost) == ("GroupAborted", (7,))


class Deleting:
    """A store that has the keys it is asked for no longer, once the first has been read."""

    def __init__(self, store: dist.Store | rendezvous.RemoteStore, leaders: dist.Store) -> None:
        self.store, self.leaders = store, leaders

    def compare_set(self, *words: str) -> bytes:
        value = bytes(self.store.compare_set(*words))
        rendezvous.clear(self.leaders, "word")
        return value


def test_what_is_deleted_meanwhile_keeps_nobody_waiting():
    """A leader that begins anew deletes all keys, at any moment of its members' reading."""
    server = rendezvous.StoreServer("127.0.0.1")
    member = rendezvous.connect(server.address)
    for store in (server.store, member):
        for key in ("word", "word too"):
            server.store.set(key, b"")
        assert rendezvous.read(store, "word") == b""
        assert rendezvous.wait(store, ["word", "word too"], 1, lambda: None) == [b"", b""]
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            rendezvous.wait(Deleting(store, server.store), ["word", "word too"], 0.1, lambda: None)
        assert rendezvous.read(store, "word") is None
        assert not store.check(["word"])
        assert time.monotonic() - began < rendezvous.EXCHANGE_TIMEOUT_S / 2


def test_one_process_is_one_world():
    groups = Groups()
    try:
        group = groups.get(1, [Member(0, groups.store_address)], "alone")
        assert (group.degree, group.rank, group.leads, group.slots) == (1, 0, True, (0,))
        with pytest.raises(RuntimeError, match="no process group"):
            _ = group.pg
        with pytest.raises(RuntimeError, match="world already"):
            Groups()
    finally:
        groups.close()
    Groups().close()
