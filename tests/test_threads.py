"""How many threads work: what the machine has, what is said, and what others leave."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from behold import threads
from behold.errors import OptionError
from behold.threads import Reading, Share, read_load, usable_cores, use_threads

# --- how many there are --------------------------------------------------------------------------------------------


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """/sys of four cores with two hardware threads each; torch has begun with eight threads."""
    for cpu in range(8):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name in ("BEHOLD_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield tmp_path
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("limit", "cores"), [(None, 4), ("max 100000", 4), ("200000 100000", 2), ("50000 100000", 1), ("nonsense", 4)]
)
def test_cores_are_counted_once_and_shares_are_kept_to(eight: Path, limit: str | None, cores: int) -> None:
    if limit is not None:
        (eight / "fs/cgroup").mkdir(parents=True)
        (eight / "fs/cgroup/cpu.max").write_text(limit + "\n")
    assert usable_cores(eight) == cores
    use_threads(eight)
    assert torch.get_num_threads() == cores


def test_a_process_that_is_bound_to_some_cpus(eight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 4, 5}, raising=False)
    assert usable_cores(eight) == 2


def test_who_says_how_many_threads(eight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    use_threads(eight)
    assert torch.get_num_threads() == 8
    monkeypatch.setenv("BEHOLD_THREADS", "3")
    use_threads(eight)
    assert torch.get_num_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("BEHOLD_THREADS")
    use_threads(eight)
    assert torch.get_num_threads() == 3, "fewer are left as they are"


@pytest.mark.parametrize("wrong", ["0", "-1", "two", "1.5"])
def test_no_number_of_threads(eight: Path, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHOLD_THREADS", wrong)
    with pytest.raises(OptionError, match="BEHOLD_THREADS"):
        use_threads(eight)


def test_loading_sets_them(eight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import behold

    assert eight.exists()
    monkeypatch.setenv("BEHOLD_THREADS", "5")
    behold.load("demo", device="cpu")
    assert torch.get_num_threads() == 5


# --- beside others -------------------------------------------------------------------------------------------------


class Machine:
    """Two CPUs (or more) that only this test moves on: our process, and others that take what they are said to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cpus: int = 2) -> None:
        self.now, self.cpus, self.busy, self.own = 100.0, cpus, 50.0, 20.0
        monkeypatch.setattr(threads.time, "monotonic", lambda: self.now)

    def read(self) -> Reading:
        return Reading(self.now, self.cpus, self.busy, self.own)

    def work(self, own: float, others: float, seconds: float = 0.125) -> None:
        """Time passes; so many CPUs work for us, and so many for others."""
        self.now += seconds
        self.own += own * seconds
        self.busy += (own + others) * seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_alone_all_threads_work(machine: Machine) -> None:
    share = Share(machine.read)
    for others in (0.0, 0.2, -0.1, 0.4):  # ticks are counted coarsely
        machine.work(2, others)
        assert share.threads(2) == 2
    assert share.threads(1) == 1


def test_who_meets_another_gives_way_and_comes_back(machine: Machine) -> None:
    share = Share(machine.read)
    machine.work(1, 1)
    assert share.threads(2) == 1, "each had one of two CPUs"
    for others in (1.1, 0.9, 1.7, 0.5, 0.3):
        machine.work(1, others)
        assert share.threads(2) == 1, "room for two threads is a whole CPU that is free"
    machine.work(1, 0.1)
    assert share.threads(2) == 2


def test_it_is_not_looked_at_every_step(machine: Machine) -> None:
    share = Share(machine.read)
    machine.work(1, 1, seconds=0.0625)
    assert share.threads(2) == 2
    machine.work(1, 1, seconds=0.0625)
    assert share.threads(2) == 1


def test_who_comes_back_from_a_pause_begins_with_all(machine: Machine) -> None:
    share = Share(machine.read)
    machine.work(1, 1)
    assert share.threads(2) == 1
    machine.work(0, 2, seconds=30.0)
    assert share.threads(2) == 2, "what others did meanwhile is not what they do now"
    machine.work(1, 1)
    assert share.threads(2) == 1


def test_two_settle_on_a_cpu_each(machine: Machine) -> None:
    """Both give way, and neither takes turns at coming back."""
    mine, other = Share(machine.read), Share(machine.read)
    for _ in range(20):
        machine.work(1, 1)
        assert (mine.threads(2), other.threads(2)) == (1, 1)


@pytest.mark.parametrize(("others", "left"), [(0.4, 8), (1.2, 8), (3.0, 5), (7.0, 1), (9.0, 1)])
def test_many_cpus(monkeypatch: pytest.MonkeyPatch, others: float, left: int) -> None:
    """More CPUs than threads: nobody is in our way before all are taken."""
    machine = Machine(monkeypatch, cpus=10 if left == 8 else 8)
    share = Share(machine.read)
    machine.work(8 - others, others)
    assert share.threads(8) == left


def test_other_cpus_than_before_say_nothing(machine: Machine) -> None:
    share = Share(machine.read)
    machine.work(1, 1)
    machine.cpus = 4
    assert share.threads(2) == 2


def test_a_system_that_says_nothing() -> None:
    assert Share(lambda: None).threads(7) == 7


def test_what_linux_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    assert read_load(stat) is None
    stat.write_text(
        "cpu  9 9 9 9 9 9 9 9 9 9\n" + "".join(f"cpu{n} {n}00 2 3 4 5 6 7 8 0 0\n" for n in range(4)) + "intr 1\n"
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda _: 100, raising=False)
    reading = read_load(stat)
    assert reading is not None
    assert (reading.cpus, reading.busy) == (2, (100 + 300 + 2 * (2 + 3 + 6 + 7)) / 100)
    stat.write_text("cpu0 of another kind of system\n")
    assert read_load(stat) is None


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_step_leaves_torch_as_it_was(machine: Machine) -> None:
    share = Share(machine.read)
    machine.work(1, 1)
    with share:
        assert torch.get_num_threads() == 1
        machine.work(1, 0)
        share.reconsider()
        assert torch.get_num_threads() == 2
        machine.work(1, 1)
        share.reconsider()
    assert torch.get_num_threads() == 2
    share.reconsider()
    assert torch.get_num_threads() == 2, "outside a step nothing is changed"


@pytest.mark.usefixtures("two_threads")
def test_a_thread_born_meanwhile_inherits_nothing(machine: Machine) -> None:
    """Torch gives a new thread the number that was set last: here, that of another thread's step."""
    share, found = Share(machine.read), list[int]()
    machine.work(1, 1)

    def later() -> None:
        torch.set_num_threads(1)
        machine.work(1, 0)
        with share:
            found.append(torch.get_num_threads())
        torch.set_num_threads(1)  # its own wish, this time
        with share:
            found.append(torch.get_num_threads())

    with share:
        thread = threading.Thread(target=later)
        thread.start()
        thread.join()
    assert found == [2, 1]
