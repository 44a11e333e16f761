"""States on the wire and in store."""

import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from executor import latents
from executor.image import ImageSpec
from executor.latents import NotHeld, State, Store

IMAGE = ImageSpec("a boat by night — ⛵", 128, 64, steps=9, seed=2**64 - 1, guidance=3.5)


def state(step: int = 0, dtype: torch.dtype = torch.float32, image: ImageSpec = IMAGE) -> State:
    noise = torch.Generator().manual_seed(step)
    condition = {
        "text": torch.randn(1, 7, 8, generator=noise).to(dtype),
        "pooled": torch.randn(1, 8, generator=noise).to(dtype),
    }
    return State(image, condition, torch.randn(1, 32, 16, generator=noise).to(dtype), step)


def same(a: State, b: State) -> bool:
    return (
        (a.image, a.step, set(a.condition)) == (b.image, b.step, set(b.condition))
        and torch.equal(a.latent, b.latent)
        and a.latent.dtype == b.latent.dtype
        and all(torch.equal(a.condition[name], b.condition[name]) for name in a.condition)
    )


@given(st.text(), st.integers(0, 2**64 - 1), st.none() | st.floats(0, 100), st.integers(0, 9))
def test_a_packed_state_comes_back_bit_for_bit(prompt, seed, guidance, step):
    original = state(step, image=ImageSpec(prompt, 128, 64, 9, seed, guidance))
    assert same(latents.unpack(latents.pack(original)), original)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_and_views_are_packed_exactly(dtype):
    original = state(3, dtype)
    view = State(IMAGE, original.condition, original.latent.transpose(1, 2), 3)
    assert same(latents.unpack(latents.pack(original)), original)
    assert same(latents.unpack(latents.pack(view)), view)


def test_special_values_survive():
    latent = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    back = latents.unpack(latents.pack(State(IMAGE, {}, latent, 0))).latent
    assert back.view(torch.int32).tolist() == latent.view(torch.int32).tolist()


def test_a_checkpoint_is_the_latent_alone():
    original = state(5)
    checkpoint = latents.pack_latent(original)
    assert len(checkpoint) < len(latents.pack(original))
    condition = latents.unpack_condition(latents.pack_condition(original.condition))
    assert same(latents.unpack_latent(checkpoint, IMAGE, condition), original)


@pytest.mark.parametrize("unpack", [latents.unpack, latents.unpack_condition])
@pytest.mark.parametrize(
    "data", [b"", b"no", latents.pack(state())[:-1], b"\xff" * 64], ids=["empty", "short", "cut", "junk"]
)
def test_what_is_no_packed_state_is_refused(unpack, data):
    with pytest.raises(ValueError, match="not packed tensors"):
        unpack(data)


def test_one_thing_is_not_taken_for_another():
    with pytest.raises(ValueError, match="not a packed state"):
        latents.unpack(latents.pack_latent(state()))
    with pytest.raises(ValueError, match="not a packed latent"):
        latents.unpack_latent(latents.pack_condition(state().condition), IMAGE, {})


def later(act, after_s: float = 0.1) -> threading.Thread:
    def run() -> None:
        time.sleep(after_s)
        act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_peer_waits_until_its_step_is_reached():
    store = Store()
    threads = [later(lambda s=step: store.put("a", state(s)), 0.05 * (step + 1)) for step in range(3)]
    assert store.wait("a", 2, timeout_s=10).step == 2
    for thread in threads:
        thread.join()


def test_a_release_frees_those_who_wait():
    store = Store()
    store.put("a", state(1))
    thread = later(lambda: store.release("a"))
    with pytest.raises(NotHeld, match="released"):
        store.wait("a", 2, timeout_s=60)
    thread.join()
    with pytest.raises(NotHeld, match="released"):
        store.wait("a", 2, timeout_s=60)


def test_what_ends_late_does_not_bring_a_released_request_back():
    store = Store()
    store.put("a", state(1))
    store.release("a")
    store.put("a", state(2))
    with pytest.raises(NotHeld):
        store.get("a")
    assert (store.held(), store.nbytes) == ({}, 0)
    store.expect("a")
    store.put("a", state(2))
    assert store.get("a").step == 2


def test_a_step_that_is_past_or_does_not_come_is_an_error():
    store = Store()
    with pytest.raises(TimeoutError, match="not held yet"):
        store.wait("a", 0, timeout_s=0.01)
    store.put("a", state(3))
    with pytest.raises(NotHeld, match="at step 3 already"):
        store.wait("a", 2, timeout_s=60)
    with pytest.raises(TimeoutError, match="at step 3, not at step 4"):
        store.wait("a", 4, timeout_s=0.01)


def test_memory_is_counted_and_freed():
    store = Store()
    one = state().nbytes
    assert one == 4 * (7 * 8 + 8 + 32 * 16)
    for step in range(3):
        store.put("a", state(step))
        store.put("b", state(step, torch.bfloat16))
    assert store.nbytes == one + one // 2
    assert store.held() == {"a": 2, "b": 2}
    store.release("a")
    store.release("unknown")
    assert store.nbytes == one // 2


def test_a_step_leaves_the_state_before_it_as_it_was():
    before = state(8)
    after = before.after(torch.zeros_like(before.latent))
    assert (before.step, before.done, after.step, after.done) == (8, False, 9, True)
    assert before.latent.any()
