"""Decode, infer and encode side by side: order, errors from every step, bounded queues, an orderly stop."""

from __future__ import annotations

import threading
import time
from fractions import Fraction

import numpy as np
import pytest

from dovit_deploy.runtime.run import QUEUED_FRAMES, Pipeline
from dovit_deploy.sources.source import FailedFrame, Frame


def frame(index: int) -> Frame:
    return Frame(np.zeros((2, 2, 3), np.uint8), index, "fake", Fraction(index))


def pipeline(source, *, predict=lambda f: f.index, write=lambda f, r: None, failed=lambda f: None, stop=None, **more):
    return Pipeline(source, predict=predict, write=write, failed=failed, stop=stop or threading.Event(), **more)


def test_every_frame_arrives_in_order() -> None:
    written = []
    pipeline([frame(n) for n in range(50)], write=lambda f, r: written.append((f.index, r))).run()
    assert written == [(n, n) for n in range(50)]


def test_failed_frames_are_reported_and_the_others_go_on() -> None:
    written, failures = [], []
    items = [frame(0), FailedFrame("bad.png", "cannot be read", 1), frame(2)]
    pipeline(items, write=lambda f, r: written.append(r), failed=failures.append).run()
    assert written == [0, 2]
    assert [failure.source for failure in failures] == ["bad.png"]


def test_reading_predicting_and_writing_go_on_at_the_same_time() -> None:
    all_three = threading.Barrier(3)

    def source():
        for number in range(5):
            # Each waits for the others: the third frame is read, the second predicted, the first written.
            if number == 2:
                all_three.wait(20)
            yield frame(number)

    def predict(item: Frame) -> int:
        if item.index == 1:
            all_three.wait(20)
        return item.index

    def write(item: Frame, result: int) -> None:
        if item.index == 0:
            all_three.wait(20)

    pipeline(source(), predict=predict, write=write).run()
    assert not all_three.broken


def broken_source():
    yield frame(0)
    raise OSError("unplugged")


def test_an_error_of_the_source_reaches_the_caller_after_what_was_read() -> None:
    written = []
    with pytest.raises(OSError, match="unplugged"):
        pipeline(broken_source(), write=lambda f, r: written.append(r)).run()
    assert written == [0]


def test_an_error_of_the_model_reaches_the_caller() -> None:
    def predict(item: Frame) -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        pipeline([frame(n) for n in range(100)], predict=predict).run()


def test_an_error_of_the_writer_ends_the_run() -> None:
    predicted = []

    def write(item: Frame, result: int) -> None:
        raise OSError("disk full")

    def predict(item: Frame) -> int:
        predicted.append(item.index)
        return item.index

    with pytest.raises(OSError, match="disk full"):
        pipeline((frame(n) for n in range(10_000)), predict=predict, write=write).run()
    assert len(predicted) < 10_000


@pytest.mark.parametrize(("workers", "allowed"), [(1, 2 * QUEUED_FRAMES + 4), (4, 2 * QUEUED_FRAMES + 4 + 4)])
def test_no_more_than_a_few_frames_are_alive(workers: int, allowed: int) -> None:
    read, done, most = [0], [0], [0]

    def source():
        for number in range(60):
            read[0] += 1
            most[0] = max(most[0], read[0] - done[0])
            yield frame(number)

    def write(item: Frame, result: int) -> None:
        time.sleep(0.002)
        done[0] += 1

    pipeline(source(), write=write, workers=workers).run()
    assert most[0] <= allowed


def test_stop_finishes_what_was_begun_and_no_more() -> None:
    stop, written = threading.Event(), []

    def predict(item: Frame) -> int:
        if item.index == 5:
            stop.set()
        return item.index

    pipeline((frame(n) for n in range(10**9)), predict=predict, write=lambda f, r: written.append(r), stop=stop).run()
    assert written == [0, 1, 2, 3, 4, 5]


def test_a_source_that_hangs_does_not_keep_stop_waiting() -> None:
    stop, release = threading.Event(), threading.Event()

    def source():
        yield frame(0)
        release.wait(30)

    threading.Timer(0.3, stop.set).start()
    start = time.monotonic()
    pipeline(source(), stop=stop).run()
    assert time.monotonic() - start < 10
    release.set()


def slower_first(item: Frame) -> int:
    """Later frames of three are done before earlier ones."""
    time.sleep(0.004 * (2 - item.index % 3))
    return item.index


def test_workers_work_side_by_side_and_the_order_stays() -> None:
    together, most, lock, written = [0], [0], threading.Lock(), []
    barrier = threading.Barrier(3, timeout=20)

    def predict(item: Frame) -> int:
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        if item.index < 3:
            # Passed only by three at a time.
            barrier.wait()
        result = slower_first(item)
        with lock:
            together[0] -= 1
        return result

    frames = (frame(n) for n in range(30))
    pipeline(frames, predict=predict, write=lambda f, r: written.append((f.index, r)), workers=3).run()
    assert written == [(n, n) for n in range(30)] and most[0] == 3


def test_stop_lets_workers_finish_what_they_began_and_begins_no_more() -> None:
    stop, begun, written = threading.Event(), [], []

    def predict(item: Frame) -> int:
        begun.append(item.index)
        if item.index == 5:
            stop.set()
        return slower_first(item)

    def write(item: Frame, result: int) -> None:
        written.append(result)

    pipeline((frame(n) for n in range(10**9)), predict=predict, write=write, stop=stop, workers=3).run()
    assert written == sorted(begun) == list(range(len(begun))) and 6 <= len(begun) <= 9


def test_an_error_of_one_worker_reaches_the_caller_after_the_frames_before_it() -> None:
    written = []

    def predict(item: Frame) -> int:
        if item.index == 4:
            raise ValueError("no")
        return slower_first(item)

    def write(item: Frame, result: int) -> None:
        written.append(result)

    with pytest.raises(ValueError, match="no"):
        pipeline((frame(n) for n in range(10_000)), predict=predict, write=write, workers=3).run()
    assert written == [0, 1, 2, 3]


def test_a_frame_that_fails_keeps_no_worker_busy() -> None:
    items = [FailedFrame("bad.png", "cannot be read", n) if n % 2 else frame(n) for n in range(20)]
    written = []
    pipeline(items, write=lambda f, r: written.append(r), workers=2).run()
    assert written == list(range(0, 20, 2))
