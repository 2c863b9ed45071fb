"""Work is shared out, and nobody is left at it when it is said to be done."""

import signal
import threading
import time

import numpy as np
import pytest

from xpnet.crew import Crew

crews = pytest.mark.parametrize("size", [1, 2, 3, 8])


@crews
@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_results_come_in_the_order_of_the_items(size, count):
    with Crew(size) as crew:
        assert crew.map(lambda item: item * item, list(range(count))) == [item * item for item in range(count)]


@crews
def test_so_many_work_at_the_same_time(size):
    everyone = threading.Barrier(size)
    with Crew(size) as crew:
        assert sorted(crew.map(lambda _: everyone.wait(60), range(size))) == list(range(size))


@crews
def test_the_caller_works_too(size):
    everyone = threading.Barrier(size)

    def who(_):
        everyone.wait(60)
        return threading.current_thread()

    with Crew(size) as crew:
        assert threading.current_thread() in crew.map(who, range(size))


@crews
@pytest.mark.parametrize("failing", [0, 3, 9])
def test_an_exception_comes_out_and_the_crew_works_on(size, failing):
    def inverse(item):
        return 1 / (item - failing)

    with Crew(size) as crew:
        with pytest.raises(ZeroDivisionError):
            crew.map(inverse, range(10))
        assert crew.map(abs, [-1, -2]) == [1, 2]


def test_an_exception_comes_out_when_nobody_works_any_more():
    begun, at_work = threading.Event(), []

    def work(item):
        if threading.current_thread() is threading.main_thread():
            begun.wait(60)  # for the other, who sleeps on
            raise KeyError(item)
        at_work.append(item)
        begun.set()
        time.sleep(0.05)
        at_work.remove(item)

    with Crew(2) as crew:
        with pytest.raises(KeyError):
            crew.map(work, range(4))
        assert at_work == []


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to threads")
def test_an_interrupt_comes_out_when_nobody_works_any_more():
    both, at_work = threading.Barrier(2), []

    def work(item):
        both.wait(60)
        if threading.current_thread() is threading.main_thread():
            return
        at_work.append(item)
        time.sleep(0.05)  # so that the caller waits
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.05)
        at_work.remove(item)

    with Crew(2) as crew:
        with pytest.raises(KeyboardInterrupt):
            crew.map(work, range(2))
        assert at_work == []


@crews
def test_no_thread_is_left_behind(size):
    before = threading.active_count()
    with Crew(size) as crew:
        crew.map(abs, range(size))
    assert threading.active_count() == before


def test_no_numpy_warning_comes_out_of_another_thread():
    both = threading.Barrier(2)

    def divide(_):
        both.wait(60)
        if threading.current_thread() is not threading.main_thread():
            return np.array([1.0]) / np.array([0.0])
        return None

    with Crew(2) as crew:
        assert [result for result in crew.map(divide, range(2)) if result is not None] == [np.inf]
