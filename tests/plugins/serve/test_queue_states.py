"""The queue beside a plain model of it: whatever happens in whatever order, both agree."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from queue_parts import open_at, reply

MOST = 2
SESSIONS = st.sampled_from([None, "anna", "ben"])


@dataclass
class Row:
    """What the model knows of a question."""

    session: str | None
    state: str = "waiting"
    token: int = 0
    attempts: int = 0
    expired: bool = False
    answer: str | None = None


class Queues(RuleBasedStateMachine):
    """A queue in a file, a list of rows, and all leases that there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.queue = open_at(Path(self.folder.name) / "q.db", max_attempts=MOST)
        self.rows: dict[int, Row] = {}
        self.leases = []

    def teardown(self) -> None:
        self.queue.database.close()
        self.folder.cleanup()

    def can_be_taken(self, number: int) -> bool:
        row = self.rows[number]
        mates = [
            (other, each)
            for other, each in self.rows.items()
            if row.session is not None and each.session == row.session
        ]
        blocked = any(
            each.state == "running" or (each.state == "waiting" and other < number)
            for other, each in mates
        )
        return row.state == "waiting" and not blocked

    def pick(self, data, state: str) -> int:
        numbers = [number for number, row in self.rows.items() if row.state == state]
        return data.draw(st.sampled_from(numbers))

    def has(self, state: str) -> bool:
        return any(row.state == state for row in self.rows.values())

    @rule(session=SESSIONS)
    def submit(self, session):
        number = self.queue.store.submit(f"q{len(self.rows)}", session)
        assert not self.rows or number > max(self.rows)
        self.rows[number] = Row(session)

    @rule(limit=st.integers(1, 3))
    def claim(self, limit):
        for row in self.rows.values():
            if row.expired:
                row.state = "waiting" if row.attempts < MOST else "dead"
                row.expired = False
        due = [number for number in self.rows if self.can_be_taken(number)][:limit]
        taken = self.queue.claim(limit)
        assert [lease.id for lease in taken] == due
        for lease in taken:
            row = self.rows[lease.id]
            row.state, row.token, row.attempts = "running", row.token + 1, row.attempts + 1
            assert (lease.token, lease.attempts) == (row.token, row.attempts)
        self.leases += taken

    def held(self, lease) -> Row | None:
        row = self.rows[lease.id]
        return row if row.state == "running" and row.token == lease.token else None

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), how=st.sampled_from(["settle", "fail", "spoil", "back", "renew"]))
    def write(self, data, how):
        """Let a worker write, maybe one that lost its question long ago."""
        lease = data.draw(st.sampled_from(self.leases))
        row = self.held(lease)
        leases, text = self.queue.leases, f"answer {lease.token}"
        if how == "renew":
            leases.renew([(lease, text)])
            if row:
                row.expired = False
            return
        write = {
            "settle": lambda: leases.settle(lease, reply(text)),
            "fail": lambda: leases.fail(lease, "x"),
            "spoil": lambda: leases.fail(lease, "x", final=True),
            "back": lambda: leases.give_back(lease),
        }[how]
        assert write() == (row is not None)
        if row is None:
            return
        row.expired = False
        if how == "settle":
            row.state, row.answer = "done", text
        elif how == "back":
            row.state, row.attempts = "waiting", row.attempts - 1
        else:
            over = how == "spoil" or lease.attempts >= MOST
            row.state = "dead" if over else "waiting"

    @precondition(lambda self: self.has("running"))
    @rule(data=st.data())
    def expire(self, data):
        number = self.pick(data, "running")
        self.queue.expire(number)
        self.rows[number].expired = True

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def cancel(self, data):
        number = data.draw(st.sampled_from(sorted(self.rows)))
        row = self.rows[number]
        open_ = row.state in ("waiting", "running")
        assert self.queue.store.cancel(number) == open_
        if open_:
            row.state, row.token, row.expired = "cancelled", row.token + 1, False

    @precondition(lambda self: self.has("dead"))
    @rule(data=st.data())
    def retry(self, data):
        number = self.pick(data, "dead")
        assert self.queue.store.retry([number]) == 1
        self.rows[number].state, self.rows[number].attempts = "waiting", 0

    @invariant()
    def both_agree(self):
        found = self.queue.store.look(self.rows)
        assert {
            number: (row.state, row.token, row.attempts, row.answer)
            for number, row in self.rows.items()
        } == {
            number: (each.state, each.token, each.attempts, each.answer)
            for number, each in found.items()
        }


Queues.TestCase.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
TestQueues = Queues.TestCase
