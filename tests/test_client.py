"""The Python client against a scripted SchedulerService over real gRPC (fake_scheduler.py).

Most tests run twice, with Client and with AsyncClient behind one face: the two must not differ.
"""

import asyncio
import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, timedelta
from typing import Any

import grpc
import pytest
from fake_scheduler import T0, FakeScheduler
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tetriserve
from tetriserve import AsyncClient, Client, OnLate, Stage, Verdict, convert, quantities
from tetriserve.calls import Backoff
from tetriserve.types import ImageSpec, Request
from tetriserve.v1 import types_pb2


class Blocking:
    """An AsyncClient with the face of a Client."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()

        async def make() -> AsyncClient:
            return AsyncClient(*args, **options)

        self._client = self._loop.run_until_complete(make())

    def __enter__(self) -> "Blocking":
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()

    def __getattr__(self, name: str) -> Any:
        def method(*args: Any, **options: Any) -> Any:
            answer = getattr(self._client, name)(*args, **options)
            return (
                self._all(answer) if hasattr(answer, "__aiter__") else self._loop.run_until_complete(answer)
            )

        return method

    def _all(self, items: Any) -> Iterator[Any]:
        while True:
            try:
                yield self._loop.run_until_complete(anext(items))
            except StopAsyncIteration:
                return


@pytest.fixture
def fake() -> Iterator[FakeScheduler]:
    scheduler = FakeScheduler()
    scheduler.start()
    yield scheduler
    scheduler.stop()


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def client(request: pytest.FixtureRequest, fake: FakeScheduler) -> Iterator[Any]:
    with request.param(fake.target, patience=5) as made:
        yield made


def test_submit_sends_what_was_asked_and_reads_the_answer(client: Any, fake: FakeScheduler) -> None:
    status = client.submit(
        "a red house",
        "768x512",
        steps=20,
        seed=7,
        deadline="1.5m",
        weight=2.5,
        on_late="drop",
        id="mine",
        guidance=3.5,
        negative_prompt="clouds",
    )
    (sent,) = fake.calls("Submit")
    assert sent.request == types_pb2.Request(
        id="mine",
        image=types_pb2.ImageSpec(
            prompt="a red house",
            width=768,
            height=512,
            steps=20,
            seed=7,
            guidance=3.5,
            negative_prompt="clouds",
        ),
        deadline={"seconds": 90},
        weight=2.5,
        on_late=types_pb2.ON_LATE_DROP,
    )
    assert status.request == Request(
        "mine", ImageSpec("a red house", 768, 512, 20, 7, 3.5, "clouds"), 90.0, 2.5, OnLate.DROP
    )
    assert status.stage is Stage.QUEUED
    assert status.verdict is Verdict.OPEN
    assert status.submitted_at == T0
    assert status.submitted_at.tzinfo is UTC
    assert status.deadline_at == T0 + timedelta(seconds=90)
    assert status.finished_at is status.latency is None
    assert not status.ended


def test_submit_leaves_to_the_model_what_was_not_said(client: Any, fake: FakeScheduler) -> None:
    first, second = client.submit("x", (64, 32)), client.submit("x", (64, 32))
    sent = fake.calls("Submit")[0].request
    assert sent.image.steps == 0
    assert not sent.image.HasField("guidance")
    assert not sent.HasField("deadline")
    assert first.deadline_at is first.request.deadline is None
    assert first.id != second.id
    assert first.request.image.seed != second.request.image.seed


def test_the_same_words_with_an_id_are_the_same_request(client: Any, fake: FakeScheduler) -> None:
    for id in ("a", "a", "b"):
        client.submit("x", (64, 32), id=id)
    first, again, other = (sent.request for sent in fake.calls("Submit"))
    assert first == again
    assert first.image.seed != other.image.seed


def test_a_submit_whose_answer_was_lost_is_not_submitted_twice(client: Any, fake: FakeScheduler) -> None:
    fake.answered_and_lost = 2
    status = client.submit("x", "64x64")
    assert [sent.request.id for sent in fake.calls("Submit")] == [status.id] * 3
    assert list(fake.statuses) == [status.id]


def test_a_call_is_tried_again_only_while_unavailable(client: Any, fake: FakeScheduler) -> None:
    fake.refuse("GetCluster", grpc.StatusCode.UNAVAILABLE, "stopping", times=2)
    assert client.cluster().policy == "cp-sat"
    assert len(fake.calls("GetCluster")) == 3
    fake.refuse("GetCluster", grpc.StatusCode.INTERNAL, "a fault")
    with pytest.raises(tetriserve.Internal, match="a fault"):
        client.cluster()
    assert len(fake.calls("GetCluster")) == 4


@pytest.mark.parametrize("kind", [Client, Blocking])
def test_patience_ends_with_the_schedulers_own_words(kind: Any, fake: FakeScheduler) -> None:
    fake.refuse("Submit", grpc.StatusCode.UNAVAILABLE, "no executor has joined: start one", times=99)
    with (
        kind(fake.target, patience=0.3) as client,
        pytest.raises(tetriserve.Unavailable, match=r"^no executor has joined: start one$"),
    ):
        client.submit("x")
    assert len(fake.calls("Submit")) > 1


@pytest.mark.parametrize("kind", [Client, Blocking])
def test_no_scheduler_is_named_in_the_error(kind: Any, fake: FakeScheduler) -> None:
    fake.stop()
    with (
        kind(fake.target, patience=0) as client,
        pytest.raises(tetriserve.Unavailable, match=f"no scheduler answers at {fake.target}"),
    ):
        client.cluster()


def test_a_name_that_nobody_knows_is_one_short_reason() -> None:
    words = (
        "errors resolving x.invalid:7700: [field:hostname lookup error:failed for x: Domain name not found]"
    )

    class Failed(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNAVAILABLE

        def details(self) -> str:
            return words

    said = str(tetriserve.errors.from_rpc(Failed(), "x.invalid:7700"))
    assert said == "no scheduler answers at x.invalid:7700 (Domain name not found)"


@pytest.mark.parametrize("target", ["nohost", "http://127.0.0.1:7700", "127.0.0.1:99999"])
def test_a_target_is_a_host_and_a_port(target: str) -> None:
    with pytest.raises(tetriserve.InvalidArgument, match=r"^scheduler: "):
        Client(target)


@pytest.mark.parametrize(
    ("code", "kind", "builtin"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, tetriserve.InvalidArgument, ValueError),
        (grpc.StatusCode.NOT_FOUND, tetriserve.NotFound, LookupError),
        (grpc.StatusCode.ALREADY_EXISTS, tetriserve.AlreadyExists, Exception),
        (grpc.StatusCode.FAILED_PRECONDITION, tetriserve.FailedPrecondition, Exception),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, tetriserve.ResourceExhausted, Exception),
        (grpc.StatusCode.DEADLINE_EXCEEDED, tetriserve.DeadlineExceeded, TimeoutError),
        (grpc.StatusCode.CANCELLED, tetriserve.Cancelled, Exception),
        (grpc.StatusCode.UNIMPLEMENTED, tetriserve.Unimplemented, Exception),
        (grpc.StatusCode.INTERNAL, tetriserve.Internal, Exception),
        (grpc.StatusCode.PERMISSION_DENIED, tetriserve.RpcError, Exception),
    ],
)
def test_errors_keep_the_code_and_the_message(
    client: Any, fake: FakeScheduler, code: grpc.StatusCode, kind: type, builtin: type
) -> None:
    fake.refuse("Get", code, "say it like this")
    with pytest.raises(kind, match="say it like this") as caught:
        client.get("x")
    assert caught.value.code is code
    assert isinstance(caught.value, builtin)
    assert isinstance(caught.value, tetriserve.TetriServeError)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"size": "512"}, "size"),
        ({"size": (512,)}, "size"),
        ({"size": "0x512"}, "size"),
        ({"steps": 0}, "steps"),
        ({"steps": 2**31}, "steps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"deadline": "soon"}, "deadline"),
        ({"deadline": 0}, "deadline"),
        ({"deadline": float("nan")}, "deadline"),
        ({"weight": 0}, "weight"),
        ({"weight": float("inf")}, "weight"),
        ({"guidance": float("nan")}, "guidance"),
        ({"negative_prompt": "\ud800"}, "negative_prompt"),
        ({"lora": "sketch:nan"}, "lora"),
        ({"lora": ":1"}, "lora"),
        ({"lora": "\ud800"}, "lora"),
        ({"on_late": "cry"}, "on_late"),
        ({"prompt": "\udcff"}, "prompt"),
    ],
)
def test_what_does_not_fit_the_contract_is_refused_here(
    client: Any, fake: FakeScheduler, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(tetriserve.InvalidArgument, match=f"^{field}: "):
        client.submit(**({"prompt": "x"} | options))
    assert not fake.calls("Submit")


def test_a_large_image_comes_in_chunks(client: Any, fake: FakeScheduler) -> None:
    id = client.submit("x").id
    png = fake.finish(id, size=(1024, 1024), chunk=64 * 1024)
    assert len(fake.images[id]) > 10
    assert client.image(id) == png


def test_result_waits_and_is_a_picture(client: Any, fake: FakeScheduler) -> None:
    id = client.submit("x").id
    queued = fake.event(id, 0)
    png = fake.finish(id)
    fake.streams[id] = [[queued, fake.event(id, 3)], [queued, fake.event(id, 3)]]
    picture = client.result(id)
    assert picture.size == (48, 32)
    assert picture.tobytes() == Image.open(io.BytesIO(png)).tobytes()
    assert client.result_bytes(id) == png


def test_a_torn_image_is_fetched_again(client: Any, fake: FakeScheduler) -> None:
    id = client.submit("x").id
    png = fake.finish(id)
    last = fake.images[id].pop()
    mend = threading.Timer(0.3, fake.images[id].append, [last])
    mend.start()
    assert client.image(id) == png
    mend.join()
    assert len(fake.calls("GetImage")) > 1


def test_no_image_yet_and_no_image_ever(client: Any, fake: FakeScheduler) -> None:
    id = client.submit("x").id
    with pytest.raises(tetriserve.FailedPrecondition, match="no image yet"):
        client.image(id)
    fake.statuses[id].MergeFrom(
        types_pb2.RequestStatus(stage=types_pb2.STAGE_FAILED, error="out of memory on GPU 3")
    )
    fake.streams[id] = [[fake.event(id, 1)]]
    with pytest.raises(
        tetriserve.RequestEnded, match=f"request {id} failed: out of memory on GPU 3"
    ) as caught:
        client.result(id)
    assert caught.value.status.stage is Stage.FAILED


def test_watch_tells_every_change_until_the_end(client: Any, fake: FakeScheduler) -> None:
    id = client.submit("x", steps=4, deadline=5).id
    fake.streams[id] = [
        [
            fake.event(id, 0),
            fake.event(id, 1, stage=types_pb2.STAGE_DENOISING, slots=[2, 3]),
            fake.event(id, 2, stage=types_pb2.STAGE_DENOISING, slots=[2], steps_done=3),
            fake.event(id, 6, stage=types_pb2.STAGE_DONE, verdict=types_pb2.VERDICT_LATE, steps_done=4),
            fake.event(id, 9),  # after the end nothing is read
        ]
    ]
    events = list(client.watch(id))
    assert [event.status.stage for event in events] == ["queued", "denoising", "denoising", "done"]
    assert [event.status.degree for event in events] == [0, 2, 1, 0]
    assert [event.time_left for event in events] == [timedelta(seconds=s) for s in (5, 4, 3, -1)]
    assert [event.status.verdict for event in events] == ["open", "open", "open", "late"]


@pytest.mark.parametrize("ending", [[grpc.StatusCode.UNAVAILABLE], []], ids=["broken", "closed"])
def test_watch_goes_on_after_a_break_without_repeating(
    client: Any, fake: FakeScheduler, ending: list[Any]
) -> None:
    id = client.submit("x", steps=4).id
    queued = fake.event(id, 0)
    half = fake.event(id, 1, stage=types_pb2.STAGE_DENOISING, steps_done=2)
    done = fake.event(id, 2, stage=types_pb2.STAGE_DONE, steps_done=4)
    fake.streams[id] = [[queued, half, *ending], [*ending], [half, *ending], [half, done]]
    assert [event.status.steps_done for event in client.watch(id)] == [0, 2, 4]
    assert len(fake.calls("Watch")) == 4


def test_watch_of_an_unknown_id(client: Any) -> None:
    with pytest.raises(tetriserve.NotFound, match="no request nobody"):
        list(client.watch("nobody"))


def test_wait_gives_up_after_its_timeout(client: Any, fake: FakeScheduler) -> None:
    id = client.submit("x").id

    def hang(context: grpc.ServicerContext) -> None:
        while context.is_active():
            time.sleep(0.01)

    fake.streams[id] = [[fake.event(id, 0), hang]]
    with pytest.raises(tetriserve.DeadlineExceeded, match=r"did not end within 0\.3 s; it goes on"):
        client.wait(id, timeout=0.3)


def test_wait_answers_with_spans(client: Any, fake: FakeScheduler) -> None:
    id = client.submit("x", steps=14).id
    fake.finish(id)
    fake.streams[id] = [[fake.event(id, 3)]]
    status = client.wait(id)
    assert status.latency == 3.0
    assert status.gpu_seconds == 4.5
    assert [span.slots for span in status.spans] == [(0,), (0, 1), (0, 1), (1,)]
    assert status.spans[0].end == T0 + timedelta(seconds=1)
    assert status.degrees == (1, 2, 1)


def test_list_hides_the_pages(client: Any, fake: FakeScheduler) -> None:
    ids = [client.submit("x", id=f"r{i}").id for i in range(230)]
    assert [status.id for status in client.list()] == ids[::-1]
    assert [message.page_size for message in fake.calls("List")] == [100] * 3
    assert [status.id for status in client.list(limit=105)] == ids[::-1][:105]
    assert [message.page_size for message in fake.calls("List")[3:]] == [100, 5]
    client.cancel("r5")
    assert [status.id for status in client.list(Stage.CANCELLED, "done")] == ["r5"]
    assert list(client.list("done")) == []
    with pytest.raises(tetriserve.InvalidArgument, match=r"^stages: "):
        list(client.list("asleep"))


def test_cancel_quote_cluster_and_policy(client: Any) -> None:
    id = client.submit("x").id
    assert client.cancel(id).stage is Stage.CANCELLED
    with pytest.raises(tetriserve.NotFound):
        client.cancel("nobody")
    quote = client.quote("64x64", steps=3)
    assert (quote.earliest, quote.alone, quote.gpu_seconds) == (1.75, 1.25, 2.5)
    cluster = client.cluster()
    idle, busy = cluster.executors
    assert (idle.request_ids, idle.stage, idle.degree, idle.busy_seconds) == ((), None, 0, 1.5)
    assert (busy.request_ids, busy.stage, busy.degree, busy.orders) == (("r1",), Stage.DENOISING, 2, 2)
    assert cluster.model is not None
    assert (cluster.model.name, cluster.ready, cluster.queue_limit) == ("tiny", True, 9)
    assert client.set_policy("edf") == client.cluster().policy == "edf"
    with pytest.raises(tetriserve.InvalidArgument, match="policy: one of cp-sat"):
        client.set_policy("luck")


def test_a_client_finds_a_scheduler_that_comes_back(client: Any, fake: FakeScheduler) -> None:
    id = client.submit("x").id
    port = int(fake.target.rsplit(":", 1)[1])
    fake.stop()
    revived = FakeScheduler()
    revived.statuses = fake.statuses
    revived.start(port)
    try:
        assert client.get(id).id == id
    finally:
        revived.stop()


def test_stages_of_the_future_do_not_break_the_client() -> None:
    status = convert.status_from_proto(types_pb2.RequestStatus(stage=77, verdict=77))  # type: ignore[arg-type]
    assert status.stage is Stage.UNKNOWN
    assert not status.ended
    assert status.verdict is Verdict.OPEN


def test_every_stage_of_the_contract_is_known() -> None:
    for number in types_pb2.Stage.values():
        stage = convert.status_from_proto(types_pb2.RequestStatus(stage=number)).stage
        assert (stage is Stage.UNKNOWN) == (number == types_pb2.STAGE_UNSPECIFIED)
        if number:
            assert stage.name == types_pb2.Stage.Name(number).removeprefix("STAGE_")


@given(
    st.builds(
        Request,
        id=st.text("abc.-_9", max_size=64),
        image=st.builds(
            ImageSpec,
            prompt=st.text(),
            width=st.integers(1, 2**31 - 1),
            height=st.integers(1, 2**31 - 1),
            steps=st.integers(1, 2**31 - 1),
            seed=st.integers(0, 2**64 - 1),
            guidance=st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
            negative_prompt=st.text(),
            lora=st.just("sketch"),
            lora_scale=st.floats(allow_nan=False, allow_infinity=False),
        ),
        deadline=st.none() | st.integers(1, 10**15).map(lambda ns: ns / 1e9),
        weight=st.floats(0, exclude_min=True, allow_infinity=False),
        on_late=st.sampled_from(OnLate),
    )
)
def test_a_request_survives_the_contract(request: Request) -> None:
    wire = convert.request_to_proto(request).SerializeToString()
    status = types_pb2.RequestStatus(request=types_pb2.Request.FromString(wire))
    assert convert.status_from_proto(status).request == request


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("8s", 8), ("8", 8), (" 250 ms", 0.25), ("1.5m", 90), ("2min", 120), ("1h", 3600), (".5", 0.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert quantities.parse_duration(text) == seconds
    assert quantities.parse_duration(timedelta(seconds=seconds)) == seconds


@given(st.floats(-1e7, 1e7))
def test_durations_for_people_are_near(seconds: float) -> None:
    shown = quantities.show_duration(seconds)
    assert len(shown) <= 9
    if abs(seconds) < 90:
        assert abs(float(shown.removesuffix("s")) - seconds) <= 0.051


def test_pauses_grow_and_end_with_the_patience() -> None:
    backoff = Backoff(patience=60)
    pauses = [backoff.pause_after(tetriserve.Unavailable("x")) for _ in range(8)]
    assert all(0.05 <= pause <= 2.0 for pause in pauses)
    assert pauses[4] > pauses[0] * 4
    with pytest.raises(tetriserve.NotFound):
        backoff.pause_after(tetriserve.NotFound("x"))
    with pytest.raises(tetriserve.Unavailable):
        Backoff(patience=0).pause_after(tetriserve.Unavailable("x"))


def test_the_target_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TETRISERVE_SCHEDULER", raising=False)
    with Client() as client:
        assert client.target == "127.0.0.1:7700"
    monkeypatch.setenv("TETRISERVE_SCHEDULER", "10.0.0.1:1")
    with Client() as client:
        assert client.target == "10.0.0.1:1"


def test_importing_the_client_is_light() -> None:
    heavy = ["torch", "ortools", "matplotlib", "PIL", "numpy", "click", "rich", "scheduler", "executor"]
    code = f"import sys, tetriserve, tetriserve.timeline; print([m for m in {heavy!r} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
