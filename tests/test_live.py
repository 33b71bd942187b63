"""One batch for any number of threads: rows come, go and are cancelled while it runs."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest
from tiny_adapters import lora

from glmkit import Ask, Chunk, GenerationOptions, Reply, Usage, UsageError
from glmkit.errors import BusyError, ClosedError, TimeLimitError
from glmkit.live import Live
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.loading import load_local
from glmkit.testing import EchoModel, tiny_glm
from glmkit.types import StreamedModel

pytestmark = pytest.mark.usefixtures("one_thread")


def asking(text, **options):
    return [{"role": "user", "content": text}], GenerationOptions(
        **{"max_tokens": 9, "temperature": 0, **options}
    )


def until(true, limit_s=10.0):
    """Wait for what another thread does."""
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_glm(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def live(model):
    with Live(model, concurrency=4, queue=4) as live:
        yield live


def folded(steps):
    found = {}
    for news in steps:
        for key, piece in news:
            found.setdefault(key, []).append(piece)
    return found


def test_streams_say_what_single_answers_say(model):
    texts = ["one", "two and a half", "three", "four " * 30]
    asked = [Ask(at, *asking(text)) for at, text in enumerate(texts)]
    found = folded(model.streams(iter([asked[0], None, asked[1], None, None, *asked[2:]])))
    assert {key: Reply.join(each) for key, each in found.items()} == {
        at: model.reply(*asking(text)) for at, text in enumerate(texts)
    }
    assert all(len(each) > 3 for each in found.values())


def test_a_row_whose_asker_left_is_freed_at_the_next_step(model):
    gone, steps = set(), 0
    asked = [Ask(0, *asking("long", max_tokens=200)), Ask(1, *asking("short"))]
    pieces = []
    for news in model.streams(iter(asked), concurrency=1, gone=gone):
        steps += 1
        pieces += news
        if steps == 3:
            gone.add(0)
    ends = [(key, each.finish_reason) for key, each in pieces if each.finish_reason]
    assert ends == [(0, "cancelled"), (1, "length")]
    assert steps < 20


def test_a_row_may_leave_before_it_runs(model):
    asked = [Ask(0, *asking("first")), Ask(1, *asking("second"))]
    found = folded(model.streams(iter(asked), concurrency=1, gone={1}))
    assert [each[-1].finish_reason for each in found.values()] == ["length", "cancelled"]


def test_what_cannot_be_asked_is_an_error_among_the_news(model):
    found = folded(model.streams(iter([Ask(0, *asking("x" * 9999)), Ask(1, *asking("y"))])))
    assert isinstance(found[0][0], UsageError) and found[1][-1].finish_reason == "length"


def test_a_plain_text_is_gone_on_with(model):
    options = GenerationOptions(max_tokens=5, temperature=0)
    found = folded(model.streams(iter([Ask(0, "go on", options), Ask(1, "", options)])))
    ids = model.tokenizer.wrap(model.tokenizer.encode("go on"))
    assert Reply.join(found[0]).text == model.tokenizer.decode(model.generate_ids(ids, 5))
    assert found[0][-1].usage == Usage(len(ids), 5)
    assert isinstance(found[1][0], UsageError) or found[1][-1].finish_reason == "length"


def test_many_threads_share_one_batch(live, model):
    texts = [f"question {at}" for at in range(8)]
    found = {}

    def ask(text):
        found[text] = live.reply(*asking(text))

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == {text: model.reply(*asking(text)) for text in texts}
    assert (live.running, live.waiting) == (0, 0)


def test_closing_a_stream_frees_its_row_and_others_go_on(live, model):
    with closing(live.stream(*asking("endless", max_tokens=400))) as leaving:
        next(leaving)
        assert live.running == 1
    assert live.reply(*asking("next")) == model.reply(*asking("next"))
    until(lambda: live.running == 0)


def test_too_many_are_told_at_once(live):
    streams = [live.stream(*asking(f"{at}", max_tokens=400)) for at in range(8)]
    for each in streams:
        next(each)
        if live.running >= 4:
            break
    tickets = [live.ask(*asking("w"), wake=lambda: None) for _ in range(4)]
    with pytest.raises(BusyError, match="4 questions wait"):
        live.reply(*asking("too many"))
    assert live.waiting == 4
    for each in (*streams, *tickets):
        each.close()
    until(lambda: live.running == live.waiting == 0)


def test_an_answer_has_its_time(live):
    with pytest.raises(TimeLimitError, match=r"within 0\.01 s"):
        list(live.stream(*asking("slow", max_tokens=450), timeout_s=0.01))
    until(lambda: live.running == 0)


def test_an_error_is_for_its_asker_alone(live):
    with pytest.raises(UsageError, match="tokens"):
        live.reply(*asking("x" * 9999))
    assert live.reply(*asking("fine")).finish_reason == "length"


def test_rows_of_one_batch_wear_what_they_were_asked_for(live, model):
    model.add_adapter(lora(model), "low")
    model.set_adapter(None)
    try:
        choices = [None, "low", {"low": 0.5}] * 2
        tickets = [(each, live.stream(*asking("hello", adapter=each))) for each in choices]
        found = [(each, Reply.join(stream)) for each, stream in tickets]
        for adapter, reply in found:
            assert reply == model.reply(*asking("hello", adapter=adapter))
        assert len({reply.text for _, reply in found}) == 3
    finally:
        live.close()
        model.unload_adapter("low")


def test_rows_with_another_prefix_wait_for_their_turn_and_none_is_lost(tmp_path):
    model = load_local(tiny_checkpoint(tmp_path / "base", layout="chatglm2"))
    for seed, name in enumerate("ab"):
        folder = tmp_path / name
        model.load_adapter(
            tiny_checkpoint(folder, layout="chatglm2", prefix=4, only_prefix=True, seed=seed + 1),
            name,
            any_base=True,
        )
    asked = [Ask(at, *asking("hello", adapter=each)) for at, each in enumerate(["a", "b", {}] * 2)]
    found = folded(model.streams(iter([each for ask in asked for each in (ask, None)])))
    for ask in asked:
        assert Reply.join(found[ask.key]) == model.reply(ask.messages, ask.options)
    assert len({Reply.join(each).text for each in found.values()}) == 3


def test_draining_lets_answers_end_and_takes_no_more(model):
    live = Live(model, concurrency=2)
    running = live.stream(*asking("begun", max_tokens=40))
    first = next(running)
    done = []
    thread = threading.Thread(target=lambda: done.append(live.drain(10)))
    thread.start()
    until(lambda: live._shut)
    with pytest.raises(ClosedError):
        live.reply(*asking("too late"))
    assert Reply.join([first, *running]).finish_reason == "length"
    thread.join()
    assert done == [True]
    live.close()


def test_closing_tells_who_waits(model):
    live = Live(model)
    running = live.stream(*asking("begun", max_tokens=400))
    next(running)
    assert not live.drain(0)
    live.close()
    with pytest.raises(ClosedError):
        list(running)
    live.close()


class Breaking(StreamedModel):
    """Breaks in the middle of its first answer; notes which of its streams were closed."""

    name, languages = "breaking", None

    def __init__(self):
        self.asked = 0
        self.closed = []

    def stream(self, messages, options=None):
        self.asked += 1
        number = self.asked
        try:
            yield Chunk("half ")
            if number == 1:
                raise ZeroDivisionError("a fault of its own")
            for _ in range(options.max_tokens):
                yield Chunk("more ")
            yield Chunk("", "stop", Usage(1, 2))
        finally:
            self.closed.append(number)


def test_a_model_without_a_batch_answers_one_by_one_and_a_fault_ends_one_answer():
    model = Breaking()
    with Live(model) as live:
        assert live.concurrency == 1
        stream = live.stream(*asking("a"))
        assert next(stream).text == "half "
        with pytest.raises(ZeroDivisionError):
            next(stream)
        leaving = live.stream(*asking("b", max_tokens=10**6))
        next(leaving)
        leaving.close()
        until(lambda: model.closed == [1, 2])
        assert live.reply(*asking("c")).text == "half " + "more " * 9


def test_a_batch_that_breaks_is_told_and_the_next_one_begins_afresh(model, monkeypatch):
    real = type(model)._decode
    broken = []

    def decode(self, rows, *, slots):
        steps = real(self, rows, slots=slots)
        for at, column in enumerate(steps):
            if at == 2 and not broken:
                broken.append(True)
                raise RuntimeError("the device is lost")
            yield column

    monkeypatch.setattr(type(model), "_decode", decode)
    with Live(model) as live:
        with pytest.raises(RuntimeError, match="device is lost"):
            live.reply(*asking("a"))
        assert live.reply(*asking("a")).finish_reason == "length"


def test_an_idle_model_does_not_spin(live):
    live.reply(*asking("warm"))
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1


def test_any_chat_model_will_do(echo: EchoModel):
    with Live(echo) as live:
        reply = live.reply([{"role": "user", "content": "so it is"}])
    assert (reply.text, reply.finish_reason, live.name) == ("so it is", "stop", "echo")


def test_prompts_are_made_by_who_asks_and_not_by_the_batch(live, model, monkeypatch):
    threads, begin = [], type(model).begin

    def noted(self, messages, options):
        threads.append(threading.current_thread())
        return begin(self, messages, options)

    monkeypatch.setattr(type(model), "begin", noted)
    assert live.reply(*asking("hello")).text == model.reply(*asking("hello")).text
    with pytest.raises(UsageError):
        live.reply(*asking("x" * 9999))
    assert threads == [threading.current_thread()] * 2


def test_what_cannot_fit_is_refused_before_it_is_made_into_tokens(live, model, monkeypatch):
    monkeypatch.setattr(type(model.tokenizer), "encode", None)
    with pytest.raises(UsageError, match="cannot be"):
        live.reply(*asking("x" * 1_500_000))
