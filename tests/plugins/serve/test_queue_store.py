"""The table of questions: order, leases, tokens, retries, dead letters, cancelling, limits."""

import threading

import pytest
from queue_parts import Queue, open_at, reply

from glmkit import BusyError, ConfigError, Passage, Reply, Usage, UsageError
from glmkit_serve.queue.database import Database, DatabaseError, parsed, shown
from glmkit_serve.queue.settings import QueueSettings
from glmkit_serve.queue.store import UnknownQuestionError


def test_an_answer_is_there_when_it_is_whole(queue):
    number = queue.store.submit("What is a glacier?", "anna")
    assert queue.store.get(number).created > 1.7e9
    lease = queue.take()
    queue.leases.renew([(lease, "A river")])
    assert queue.store.get(number).partial == "A river" and queue.store.get(number).answer is None
    sources = (Passage("Ice flows.", "ice.md", "line 1", 0.5),)
    assert queue.leases.settle(lease, Reply("A river of ice.", "stop", Usage(5, 4), sources))
    found = queue.store.get(number)
    assert (found.state, found.answer, found.partial) == ("done", "A river of ice.", None)
    assert (found.finish_reason, found.prompt_tokens, found.completion_tokens) == ("stop", 5, 4)
    assert '"ice.md"' in found.sources and found.started <= found.finished


def test_a_bare_insert_is_enough(queue):
    queue.sql("INSERT INTO {table} (session, question) VALUES ('anna', '湖？')")
    lease = queue.take()
    assert (lease.question, lease.session, lease.attempts) == ("湖？", "anna", 1)
    queue.leases.settle(lease, reply("贝加尔湖"))
    assert queue.sql("SELECT answer, state FROM {table}") == [("贝加尔湖", "done")]


def test_two_workers_never_take_the_same(queue):
    numbers = [queue.store.submit(f"q{i}") for i in range(40)]
    taken: list[list[int]] = []

    def work(name):
        mine = []
        while found := queue.claim(3, name):
            mine += [lease.id for lease in found]
        taken.append(mine)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sum(taken, [])) == numbers


def test_a_session_waits_for_its_earlier_question(queue):
    first, second = queue.store.submit("1", "anna"), queue.store.submit("2", "anna")
    other = queue.store.submit("3", "ben")
    lease = queue.take()
    assert lease.id == first
    assert [each.id for each in queue.claim(9)] == [other]
    queue.leases.fail(lease, "no luck")
    assert queue.take().id == first  # tried again before the second is begun
    queue.expire(first)
    again = queue.take()
    assert (again.id, again.attempts) == (first, 3)
    queue.leases.settle(again, reply("one"))
    assert queue.take().id == second


def test_the_pause_of_one_question_holds_up_its_session(new_queue):
    queue = new_queue(backoff_s=60.0)
    queue.store.submit("1", "anna"), queue.store.submit("2", "anna")
    queue.leases.fail(queue.take(), "no luck")
    assert queue.claim(9) == []


def test_a_session_never_runs_twice_even_where_numbers_come_late(queue):
    """A row with a lower number may be committed later, where databases hand out numbers early."""
    queue.sql("INSERT INTO {table} (id, session, question) VALUES (7, 'anna', 'b')")
    late = queue.take()
    queue.sql("INSERT INTO {table} (id, session, question) VALUES (5, 'anna', 'a')")
    assert queue.claim(9) == []
    queue.leases.settle(late, reply("B"))
    assert queue.take().id == 5


def test_the_database_itself_keeps_a_session_to_one_running_question(queue):
    queue.store.submit("1", "anna"), queue.store.submit("2", "anna")
    queue.take()
    with pytest.raises(Exception, match="(?i)unique|duplicate"):
        queue.sql("UPDATE {table} SET state = 'running', busy_session = 'anna'")


def test_who_lost_a_lease_can_write_nothing(queue):
    number = queue.store.submit("q", "anna")
    slow = queue.take()
    queue.expire(number)
    fast = queue.take()
    queue.leases.renew([(slow, "old")])
    assert queue.store.get(number).partial is None
    assert queue.leases.held([slow]) == set() and queue.leases.held([fast]) == {number}
    assert not queue.leases.settle(slow, reply("old"))
    assert not queue.leases.fail(slow, "old") and not queue.leases.give_back(slow)
    assert queue.leases.settle(fast, reply("new"))
    assert not queue.leases.settle(fast, reply("newer"))
    assert queue.store.get(number).answer == "new"


def test_a_lease_that_is_renewed_does_not_end(new_queue):
    queue = new_queue(lease_s=100.0)
    number = queue.store.submit("q")
    lease = queue.take()
    queue.expire(number)
    queue.leases.renew([(lease, None)])
    assert queue.claim() == [] and queue.state(number) == "running"


def test_attempts_come_to_an_end(new_queue):
    queue = new_queue(max_attempts=2)
    number = queue.store.submit("q", "anna")
    after = queue.store.submit("next", "anna")
    queue.leases.fail(queue.take(), "first")
    assert queue.state(number) == "waiting"
    queue.leases.fail(queue.take(), "second\0")
    dead = queue.store.get(number)
    assert (dead.state, dead.error, dead.attempts) == ("dead", "second\ufffd", 2)
    assert [each.id for each in queue.store.listed("dead")] == [number]
    assert queue.take().id == after  # a dead question holds nobody up
    assert queue.store.retry([number, after]) == 1
    assert (queue.state(number), queue.store.get(number).attempts) == ("waiting", 0)


def test_a_question_that_ends_its_workers_dies(new_queue):
    queue = new_queue(max_attempts=2)
    number = queue.store.submit("q")
    for _ in range(2):
        queue.take()
        queue.expire(number)
    assert queue.claim() == []
    assert queue.state(number) == "dead" and "sign of life" in queue.store.get(number).error


def test_what_cannot_be_answered_is_not_tried_again(queue):
    number = queue.store.submit("q")
    queue.leases.fail(queue.take(), "too long", final=True)
    assert queue.state(number) == "dead" and queue.store.get(number).attempts == 1
    assert queue.store.retry() == 1


def test_what_is_given_back_was_never_tried(queue):
    number = queue.store.submit("q", "anna")
    queue.leases.give_back(queue.take())
    assert queue.store.get(number).attempts == 0
    assert queue.take().attempts == 1


def test_cancelling_takes_a_question_back_wherever_it_is(queue):
    running, waiting = queue.store.submit("1", "anna"), queue.store.submit("2", "anna")
    third = queue.store.submit("3", "anna")
    lease = queue.take()
    queue.leases.renew([(lease, "half")])
    assert queue.store.cancel(waiting) and queue.store.cancel(running)
    assert not queue.store.cancel(running)
    assert not queue.leases.settle(lease, reply("late"))
    found = queue.store.get(running)
    assert (found.state, found.answer, found.partial) == ("cancelled", None, "half")
    assert queue.take().id == third
    with pytest.raises(UnknownQuestionError, match="no question 99"):
        queue.store.cancel(99)


def test_history_is_the_last_answered_turns_of_the_session(new_queue):
    queue = new_queue(history=2)
    for n in range(4):
        queue.store.submit(f"q{n}", "anna")
        lease = queue.take()
        queue.leases.fail(lease, "x", final=True) if n == 2 else queue.leases.settle(
            lease, reply(f"a{n}")
        )
    queue.store.submit("q4", "anna")
    said = [(each.role, each.content) for each in queue.leases.history(queue.take())]
    assert said == [("user", "q1"), ("assistant", "a1"), ("user", "q3"), ("assistant", "a3")]
    queue.store.submit("alone")
    assert queue.leases.history(queue.take()) == []


def test_questions_for_other_models_are_left_alone(queue):
    for model in ("big", None, "small"):
        queue.store.submit("q", model=model)
    assert [each.model for each in queue.claim(9, models=("small",))] == [None, "small"]
    assert queue.store.waiting_for() == {"big": 1}


def test_a_full_queue_refuses_and_says_so(new_queue):
    queue = new_queue(max_waiting=2)
    queue.store.submit("1"), queue.store.submit("2")
    with pytest.raises(BusyError, match="2 questions wait, and 2 may"):
        queue.store.submit("3")
    queue.take()
    queue.store.submit("3")


def test_the_line_is_as_long_as_it_looks(queue):
    numbers = [queue.store.submit(f"q{n}") for n in range(3)]
    assert [queue.store.ahead(queue.store.get(n)) for n in numbers] == [0, 1, 2]
    queue.take()
    assert [queue.store.ahead(queue.store.get(n)) for n in numbers] == [0, 0, 1]


def test_purging_removes_what_was_settled_long_ago(queue):
    for n in range(4):
        queue.store.submit(f"q{n}")
    for lease in queue.claim(3):
        queue.leases.settle(lease, reply("a"))
    queue.set(1, finished=1.0), queue.set(4, finished=1.0)
    assert queue.store.purge(1.0) == 1 and queue.store.counts()["done"] == 2
    assert queue.store.purge(0.0, ("done", "waiting")) == 2
    assert queue.store.counts() == dict.fromkeys(queue.store.counts(), 0) | {"waiting": 1}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"question": " "}, "needs a text"),
        ({"question": "a\0b"}, "NUL"),
        ({"question": "\ud800"}, "Unicode"),
        ({"question": "x" * 31}, "30 characters at most"),
        ({"question": "q", "session": ""}, "a session is 1 to 190"),
        ({"question": "q", "model": "m" * 191}, "a model is 1 to 190"),
    ],
)
def test_what_no_table_can_hold_is_refused(tmp_path, given, said):
    queue = open_at(tmp_path / "q.db", max_chars=30)
    with pytest.raises(UsageError, match=said):
        queue.store.submit(**given)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "no address"),
        ("oracle://scott:tiger@host/db", "databases are sqlite"),
        ("sqlite://", "needs a file"),
        ("postgresql://bob:tiger@host:port/db", "no address"),
    ],
)
def test_addresses_that_lead_nowhere_are_refused_without_their_password(url, said):
    with pytest.raises(UsageError, match=said) as caught:
        parsed(url)
    assert "tiger" not in str(caught.value)


def test_passwords_are_never_shown(tmp_path):
    for url in ("postgresql://bob:tiger@host/db?password=tiger", "mysql://bob:tiger@host/db"):
        found = parsed(url)
        assert "tiger" not in shown(found) and "bob" in shown(found)
        assert "tiger" not in repr(QueueSettings(db=url))
    with pytest.raises(DatabaseError) as caught:
        Database.open(f"postgresql://bob:tiger@/db?host={tmp_path}", "questions")
    assert "tiger" not in str(caught.value) and "bob" in str(caught.value)


def test_tables_of_a_later_version_are_left_alone(tmp_path):
    queue = open_at(tmp_path / "q.db")
    queue.sql("UPDATE {table}_version SET version = 99")
    with pytest.raises(DatabaseError, match="of version 99"):
        open_at(tmp_path / "q.db")


def test_many_may_open_a_new_database_at_once(tmp_path):
    opened: list[Queue] = []
    path = tmp_path / "q.db"
    threads = [threading.Thread(target=lambda: opened.append(open_at(path))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 6


def test_two_queues_share_a_database(tmp_path):
    one, two = open_at(tmp_path / "q.db", table="one"), open_at(tmp_path / "q.db", table="two")
    one.store.submit("q")
    assert two.claim() == [] and len(one.claim()) == 1


@pytest.mark.parametrize(
    "table",
    [{"slots": 0}, {"lease_s": "x"}, {"tabel": "q"}, {"table": "q; DROP"}, {"keep_days": 0}],
)
def test_settings_are_checked(table):
    with pytest.raises(ConfigError):
        QueueSettings.of(table)
