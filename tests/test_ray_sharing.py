"""What the ray engine does without Ray: sharing rows out, the inside of a worker, who gets what."""

import logging
import threading
import time
from collections import deque

import pytest
from hypothesis import given, settings, strategies as st

from glmkit.errors import CheckpointError, GlmkitError, UnknownNameError, UsageError
from glmkit.runtime.engines.ray import cluster as clusters
from glmkit.runtime.engines.ray.cluster import Cluster, Node, Share, reason_of, shared_out
from glmkit.runtime.engines.ray.sharing import Sharing
from glmkit.runtime.engines.ray.worker import Failed, Worker
from glmkit.testing import EchoModel
from glmkit.types import Ask, GenerationOptions, Reply

AHEAD = 6


def ask(key, text=None):
    return Ask(key, [{"role": "user", "content": text or f"row {key}"}], GenerationOptions())


class Simulated:
    """A worker as the sharing sees it: draws rows into slots, answers them, dies of poison."""

    def __init__(self, slots):
        self.slots, self.waiting, self.begun = slots, deque(), []

    def told(self, order):
        self.waiting.extend(each.key for each in order.asks)
        back = [self.waiting.pop() for _ in range(min(order.give_back, len(self.waiting)))]
        while self.waiting and len(self.begun) < self.slots:
            self.begun.append(self.waiting.popleft())
        return back


def simulated(rows, workers, poison, preempted, pick):
    """Run a whole job; return the outcome of each row, in the order they came."""
    drawn = [0]

    def asked():
        for key in range(rows):
            drawn[0] += 1
            yield ask(key)

    sharing, outcomes = Sharing(asked(), ahead=AHEAD), []
    alive = [Simulated(slots=3) for _ in range(workers)]
    for each in alive:
        sharing.join(each)
    for _ in range(40 * (rows + workers + 10)):
        if sharing.over:
            return outcomes
        at = pick(len(alive))
        worker = alive[at]
        order = sharing.order(worker, len(worker.waiting))
        sharing.returned(worker, worker.told(order))
        assert len(worker.waiting) <= AHEAD
        assert drawn[0] <= len(outcomes) + workers * (AHEAD + 3) * 2 + 8
        struck = preempted and pick(12) == 0
        preempted -= struck
        if struck or poison & set(worker.begun):
            outcomes += [(key, "given up") for key in sharing.lose(worker)]
            alive[at] = Simulated(slots=3)
            sharing.join(alive[at])
        elif worker.begun:
            key = worker.begun.pop(pick(len(worker.begun)))
            assert sharing.settle(worker, key)
            assert not sharing.settle(worker, key)
            outcomes.append((key, "answered"))
    raise AssertionError("the job never ends")


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 60),
    workers=st.integers(1, 4),
    poison=st.sets(st.integers(0, 59), max_size=3),
    preempted=st.integers(0, 5),
    random=st.randoms(use_true_random=False),
)
def test_every_row_has_one_outcome_whatever_dies(rows, workers, poison, preempted, random):
    outcomes = simulated(rows, workers, poison, preempted, random.randrange)
    assert sorted(key for key, _ in outcomes) == list(range(rows))
    given_up = {key for key, outcome in outcomes if outcome == "given up"}
    assert given_up >= {key for key in poison if key < rows}
    if not preempted or (preempted < 3 and not poison):  # it takes three losses to give a row up
        assert given_up <= poison


def test_rows_not_begun_go_from_the_busy_to_the_idle():
    sharing = Sharing(map(ask, range(5)), ahead=AHEAD)
    sharing.join("busy")
    assert [each.key for each in sharing.order("busy", 0).asks] == [0, 1, 2, 3, 4]
    sharing.join("idle")
    assert sharing.order("busy", 4) == ([], False, 2)
    sharing.returned("busy", [4, 3, 99])
    order = sharing.order("idle", 0)
    assert sorted(each.key for each in order.asks) == [3, 4]
    assert not order.more
    assert sharing.holds("busy") == 3


def test_one_worker_examines_while_the_others_go_on():
    sharing = Sharing(map(ask, range(1000)), ahead=AHEAD)
    for each in "abc":
        sharing.join(each)
        sharing.order(each, 0)
    sharing.lose("a")
    assert sharing.order("b", 0) == ([], False, 0)  # it finishes what it has first
    assert len(sharing.order("c", 0).asks) == AHEAD
    for key in range(AHEAD, 2 * AHEAD):
        sharing.settle("b", key)
    assert [each.key for each in sharing.order("b", 0).asks] == [0, 1, 2, 3, 4, 5]
    for key in range(AHEAD):
        sharing.settle("b", key)
    assert len(sharing.order("b", 0).asks) == AHEAD  # and then it goes on like the others


# a worker, in this process


class Gated(EchoModel):
    """Answers side by side, each row when the test says so."""

    def __init__(self):
        super().__init__()
        self.open = threading.Event()
        self.runs = 0

    def answers(self, asked, *, concurrency=None):
        self.runs += 1
        for each in asked:
            self.open.wait(10)
            text = each.messages[-1]["content"]
            if text == "bad":
                yield each.key, UnknownNameError("adapter", "x", ["y"])
            elif text == "fatal":
                raise CheckpointError("the weights are damaged")
            elif text == "bug":
                raise RuntimeError("device error")
            else:
                yield each.key, self.reply(each.messages, each.options)


def opened(model):
    worker = Worker()
    said = worker.open(lambda: model, None)
    assert said.fault is None
    return worker


def told(worker, *asks, more=False, give_back=0):
    return worker.exchange(list(asks), more, give_back)


def drained(worker, count):
    done = []
    while len(done) < count:
        report = told(worker)
        assert report.fault is None
        done += report.done
    return done


def test_a_worker_answers_and_packs_errors():
    model = Gated()
    model.open.set()
    worker = opened(model)
    report = told(worker, ask(0, "hello"), ask(1, "bad"))
    done = dict([*report.done, *(drained(worker, 2 - len(report.done)))])
    assert done[0].text == "hello"
    error = done[1].error()
    assert isinstance(error, UnknownNameError)
    assert str(error) == str(UnknownNameError("adapter", "x", ["y"]))


def test_a_worker_gives_back_what_it_has_not_begun():
    model = Gated()
    worker = opened(model)
    told(worker, *map(ask, range(5)), more=True)
    report = told(worker, give_back=2)
    assert report.returned == [4, 3]
    model.open.set()
    assert sorted(key for key, _ in drained(worker, 3)) == [0, 1, 2]


def test_a_worker_asks_for_rows_before_it_runs_dry():
    model = Gated()
    model.open.set()
    worker = opened(model)
    began = time.monotonic()
    reports = [told(worker, *map(ask, range(20)), more=True)]
    while sum(len(each.done) for each in reports) < 20:
        reports.append(told(worker, more=True))
    assert time.monotonic() - began < 5
    assert reports[-1].waiting == 0
    # Rows that come a little later are taken into the same run, so that its slots stay full.
    told(worker, ask(20))
    drained(worker, 0)
    assert model.runs <= 2


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("fatal", Failed(CheckpointError, "the weights are damaged")),
        ("bug", "RuntimeError: device error"),
    ],
)
def test_a_worker_says_why_it_can_answer_no_more(text, fault):
    model = Gated()
    model.open.set()
    worker = opened(model)
    report = told(worker, ask(0, text))
    while report.fault is None:
        report = told(worker)
    assert report.fault == fault


def test_a_worker_says_why_it_has_no_model_and_what_it_warned_of():
    def load():
        logging.getLogger("glmkit.runtime.loading").warning("taken for chatglm2")
        raise UsageError("no folder 'x' here")

    said = Worker().open(load, None)
    assert said.fault == Failed(UsageError, "no folder 'x' here")
    assert said.warnings == ["taken for chatglm2"]


def test_a_loader_that_wants_to_end_the_program_is_told_of():
    def load():
        raise SystemExit("a plugin gave up")

    told = []
    opening = threading.Thread(target=lambda: told.append(Worker().open(load, None)), daemon=True)
    opening.start()
    opening.join(5)
    assert [each.fault for each in told] == ["SystemExit: a plugin gave up"]


def test_a_model_that_answers_one_by_one_does_too():
    worker = opened(EchoModel())
    report = told(worker, ask(0, "hi"))
    done = [*report.done, *drained(worker, 1 - len(report.done))]
    assert isinstance(done[0][1], Reply)


# what workers get


@pytest.mark.parametrize(
    ("cluster", "nodes", "share"),
    [
        (Cluster(), [Node(8, 0)], Share(1, 8, 0)),
        (Cluster(), [Node(8, 0), Node(16, 0)], Share(3, 8, 0)),
        (Cluster(workers=3), [Node(8, 0)], Share(3, 2, 0)),
        (Cluster(workers=3), [Node(8, 0), Node(8, 0)], Share(3, 4, 0)),
        (Cluster(workers=5), [Node(2, 0)], Share(5, 1, 0)),
        (Cluster(cpus_per_worker=4), [Node(8, 2), Node(4, 0)], Share(3, 4, 0)),
        (Cluster(), [Node(32, 8), Node(8, 1), Node(16, 0)], Share(9, 1, 1)),
        (Cluster(gpus_per_worker=2), [Node(32, 8), Node(8, 1)], Share(4, 1, 2)),
        (Cluster(gpus_per_worker=0.1), [Node(32, 1)], Share(10, 1, 0.1)),
        (Cluster(gpus_per_worker=0), [Node(4, 4)], Share(1, 4, 0)),
        (Cluster(workers=100), [Node(32, 8)], Share(100, 1, 1)),  # as machines join
    ],
)
def test_machines_are_divided_among_workers(cluster, nodes, share):
    assert shared_out(cluster, nodes) == share


@pytest.mark.parametrize(
    ("cluster", "nodes"),
    [
        (Cluster(gpus_per_worker=2), [Node(8, 1), Node(8, 1)]),
        (Cluster(cpus_per_worker=16), [Node(8, 0)]),
        (Cluster(), []),
    ],
)
def test_a_worker_that_fits_nowhere_is_refused(cluster, nodes):
    with pytest.raises(UsageError, match="fits on no machine"):
        shared_out(cluster, nodes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"address": "ray://head:10001"},
        {"address": "head"},
        {"address": ":6379"},
        {"address": "head:65536"},
        {"address": "head:²"},
        {"workers": 0},
        {"cpus_per_worker": 0},
        {"gpus_per_worker": -1},
        {"gpus_per_worker": 1.5},
    ],
)
def test_a_wrong_cluster_is_refused(wrong):
    with pytest.raises(UsageError):
        Cluster(**wrong)


@pytest.mark.network
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_cluster_that_is_gone_is_noticed_at_once(monkeypatch):
    monkeypatch.setattr(clusters, "_last_started", lambda: "127.0.0.1:9")
    with pytest.raises(UsageError, match="no Ray cluster runs.*the last one was at 127.0.0.1:9"):
        clusters._refuse_unreachable("auto")
    monkeypatch.setattr(clusters, "_last_started", lambda: None)
    clusters._refuse_unreachable("auto")  # Ray may find it by its processes


def test_what_ray_says_in_many_lines_is_one():
    killed = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: Worker\n"
        "\tip: 10.0.0.2\nThe actor is dead because its worker process has died. Worker exit type: "
        "SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits. Some common causes include"
    )
    assert reason_of(GlmkitError(killed)) == "Worker unexpectedly exits on 10.0.0.2"
    lacking = "Traceback:\n  File \"x\"\nModuleNotFoundError: No module named 'glmkit'\n"
    assert reason_of(GlmkitError(lacking)) == "ModuleNotFoundError: No module named 'glmkit'"
    assert reason_of(GlmkitError()) == "GlmkitError"
