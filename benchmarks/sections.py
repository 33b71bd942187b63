"""What is measured. Contenders take turns; each section adds its rounds to the record."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from contenders import DTYPES, OPENVINO, Contenders, batched, peer
from prepare import forget_pages
from prompts import CHAT, QUESTION, prompts
from record import OURS, ROOT, Record, Rounds
from worker import AbsentError, Worker

SPEED, FIRST, LOAD, MEMORY = "tokens/s", "s to the first token", "s until ready", "MB at most"


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    """Of a single stream."""
    single_tokens: int
    batches: tuple[tuple[int, int], ...]
    """(prompts, rounds) of each batch."""
    tokens: int
    """New tokens of each row of a batch, and of a turn of a chat."""
    slow_prompts: dict[str, int]
    """How many prompts of a batch the slow ways answer: their speed does not grow with more."""
    turns: int
    chats: int
    loads: int
    plugin_rounds: int

    def told(self) -> dict[str, Any]:
        """Return the settings as they are recorded."""
        return {**vars(self), "greedy": True}


FULL = Plan(
    rounds=3,
    single_tokens=128,
    batches=((8, 2), (64, 2), (256, 1)),
    tokens=64,
    slow_prompts={"one by one": 4, "padded 8": 8, "padded 32": 32, "continuous": 32},
    turns=10,
    chats=2,
    loads=2,
    plugin_rounds=30,
)
QUICK = Plan(
    rounds=2,
    single_tokens=32,
    batches=((8, 1), (32, 1)),
    tokens=16,
    slow_prompts={"one by one": 1, "padded 8": 8, "padded 32": 32, "continuous": 8},
    turns=4,
    chats=1,
    loads=1,
    plugin_rounds=4,
)

Way = Callable[[], float]


def take_turns(ways: dict[str, Way], rounds: int, absent: dict[str, str]) -> Rounds:
    """Let everyone run once a round; who begins changes from round to round.

    :param absent: who ends on the way, and why, goes here, and takes no more turns.
    """
    names = list(ways)
    found: Rounds = {name: [] for name in names}
    for round_ in range(rounds):
        start = round_ % len(names)
        for name in names[start:] + names[:start]:
            if name in absent:
                continue
            try:
                found[name].append(ways[name]())
            except AbsentError as error:
                absent[name] = str(error)
    return {name: each for name, each in found.items() if each}


def speed(found: dict[str, float]) -> float:
    """Return new tokens per second, the prompts' time included."""
    return found["tokens"] / found["seconds"]


def single(contenders: Contenders, plan: Plan, record: Record) -> None:
    """One stream: a short question, answered at some length."""
    workers = contenders.running(OURS, OPENVINO, *map(peer, DTYPES))
    warm: dict[str, Way] = {}
    ways: dict[str, Way] = {}
    for name, worker in workers.items():
        form = "text" if name == OPENVINO else "ids"
        more = {} if name in (OURS, OPENVINO) else {"size": 1}
        run = partial(_decoded, contenders, worker, [QUESTION], form=form, **more)
        warm[name] = partial(run, tokens=8)
        ways[name] = partial(run, tokens=plan.single_tokens)
    take_turns(warm, 1, record.absent)
    record.add("single stream", take_turns(ways, plan.rounds, record.absent), SPEED)


def batch(contenders: Contenders, plan: Plan, record: Record) -> None:
    """Many prompts at once, as each contender does that best."""
    texts, where = prompts(max(count for count, _ in plan.batches), ROOT)
    made = contenders.prompts(texts)
    tokens = [len(each["ids"]) for each in made]
    record.settings["prompts"] = {
        "from": where,
        "tokens": {"median": statistics.median(tokens), "most": max(tokens)},
    }
    quickest = _quickest(contenders, made[:8], record)
    for count, rounds in plan.batches:
        ways = _batch_ways(contenders, texts[:count], quickest, plan)
        record.add(f"{count} prompts", take_turns(ways, rounds, record.absent), SPEED)


def _quickest(contenders: Contenders, made: list[dict[str, Any]], record: Record) -> str | None:
    """Return the dtype that transformers answers a small batch in first; None without it."""
    workers = contenders.running(*map(peer, DTYPES))
    ids = [each["ids"] for each in made]

    def taking(worker: Worker, tokens: int) -> float:
        seconds: float = worker.ask("decode", prompts=ids, tokens=tokens, size=len(ids))["seconds"]
        return seconds

    warm = {name: partial(taking, worker, 2) for name, worker in workers.items()}
    ways = {name: partial(taking, worker, 8) for name, worker in workers.items()}
    take_turns(dict(warm), 1, record.absent)
    tried = take_turns(dict(ways), 1, record.absent)
    return min(tried, key=tried.__getitem__, default=None)


def _batch_ways(
    contenders: Contenders, texts: list[str], quickest: str | None, plan: Plan
) -> dict[str, Way]:
    warm: dict[str, Way] = {}
    ways: dict[str, Way] = {}
    for name, worker in contenders.running(OURS, batched(OPENVINO)).items():
        form = "ids" if name == OURS else "text"
        run = partial(_decoded, contenders, worker, texts, form=form)
        warm[name] = partial(run, tokens=2)
        ways[name] = partial(run, tokens=plan.tokens)
    take_turns(warm, 1, contenders.record.absent)
    worker = contenders.running(quickest).get(quickest) if quickest else None
    if worker is not None:
        for way, what, more in _SLOW_WAYS:
            few = texts[: plan.slow_prompts[way]]
            if more.get("size", 0) > len(few) or (way == "padded 8" and len(texts) > 8):
                continue
            given = {"what": what, "tokens": plan.tokens, **more}
            ways[f"{quickest}, {way}"] = partial(_decoded, contenders, worker, few, **given)
    return ways


_SLOW_WAYS: tuple[tuple[str, str, dict[str, int]], ...] = (
    ("one by one", "decode", {"size": 1}),
    ("padded 8", "decode", {"size": 8}),
    ("padded 32", "decode", {"size": 32}),
    ("continuous", "continuous", {}),
)


def _decoded(
    contenders: Contenders,
    worker: Worker,
    texts: list[str],
    *,
    form: str = "ids",
    what: str = "decode",
    **given: object,
) -> float:
    """Let a contender answer questions; the prompts are made before the clock runs."""
    made = contenders.prompts(texts)
    found = worker.ask(what, prompts=[each[form] for each in made], **given)
    if form == "text":
        _check_length(found["prompt"], [len(each["ids"]) for each in made])
    return speed(found)


def _check_length(seen: int, lengths: list[int]) -> None:
    """Refuse figures of prompts that a contender has split otherwise, but for a mark before each.

    :raises ValueError: if it saw other tokens than the others.
    """
    if not sum(lengths) <= seen <= sum(lengths) + len(lengths):
        raise ValueError(f"prompts of {sum(lengths)} tokens were taken for {seen}")


def chat(contenders: Contenders, plan: Plan, record: Record) -> None:
    """Time to the first token of a chat's last turn, which asks what the first turn asked."""
    ours, numbers = contenders.ours(), itertools.count()
    asked = [QUESTION, *(CHAT * plan.turns)[: plan.turns - 2], QUESTION]
    first, last = "turn 1", f"turn {plan.turns}"
    messages, _ = _conversation(ours, asked, next(numbers), plan.tokens)  # warms up, too
    firsts: list[float] = []

    def kept() -> float:
        _, times = _conversation(ours, asked, next(numbers), plan.tokens)
        firsts.append(times[0])
        return times[-1]

    def anew() -> list[dict[str, str]]:
        return [_system(next(numbers)), *messages[1:]]

    ways: dict[str, Way] = {
        OURS: kept,
        f"{OURS}, nothing kept": lambda: ours.ask("turn", messages=anew(), tokens=1)["first"],
    }
    prompt = contenders.prompt(messages)
    quickest = _quickest(contenders, [prompt], record)
    for name, worker in contenders.running(OPENVINO, *([quickest] if quickest else [])).items():
        ways[name] = partial(_first, contenders, worker, anew, name == OPENVINO)
    openvino = contenders.running(OPENVINO).get(OPENVINO)
    if openvino is not None:
        said = {"asked": asked, "tokens": plan.tokens}
        ways[f"{OPENVINO}, its chat mode"] = lambda: openvino.ask(
            "chat", system=_system(next(numbers))["content"], **said
        )[-1]
    unkept = {name: way for name, way in ways.items() if way is not kept}
    take_turns(unkept, 1, record.absent)  # warms the others up
    found = take_turns(ways, plan.chats, record.absent)
    record.settings["chat"] = {"turns": plan.turns, "tokens at last": len(prompt["ids"])}
    record.add("chat, glmkit alone", {first: firsts, last: found[OURS]}, FIRST, over=first)
    record.add(f"chat, {last}", found, FIRST)


def _first(
    contenders: Contenders, worker: Worker, anew: Callable[[], list[dict[str, str]]], text: bool
) -> float:
    """Return when the first token of an answer comes, of a prompt that nobody has seen."""
    prompt = contenders.prompt(anew())
    given = {"prompt": prompt["text"]} if text else {"ids": prompt["ids"]}
    found: float = worker.ask("turn", **given)["first"]
    return found


def _system(number: int) -> dict[str, str]:
    """Return a system message of its own for each chat, so that none begins as another did."""
    return {"role": "system", "content": f"Chat {number}: you are a helpful assistant."}


def _conversation(
    worker: Worker, asked: list[str], number: int, tokens: int
) -> tuple[list[dict[str, str]], list[float]]:
    """Hold a chat; return its messages up to the last question, and each turn's first token."""
    messages, times = [_system(number)], []
    for text in asked:
        messages.append({"role": "user", "content": text})
        answer = worker.ask("turn", messages=messages, tokens=tokens)
        times.append(answer["first"])
        messages.append({"role": "assistant", "content": answer["text"]})
    return messages[:-1], times


def loading(contenders: Contenders, plan: Plan, record: Record) -> None:
    """Start processes until their model is ready, and see what a short answer takes of memory."""
    names = (OURS, OPENVINO, *map(peer, DTYPES))
    prompt = contenders.prompts([QUESTION])[0]
    loads: dict[str, Rounds] = {"cold": {}, "warm": {}}
    peaks: Rounds = {}
    for _ in range(plan.loads):
        for name in names:
            for state, rounds in loads.items():
                try:
                    if state == "cold":
                        forget_pages(contenders.files(name))
                    worker = contenders.start(name)
                    rounds.setdefault(name, []).append(worker.ready_s)
                    if state == "warm":
                        peaks.setdefault(name, []).append(_peak(worker, name, prompt))
                except AbsentError as error:
                    record.absent[name] = str(error)
                    break
                worker.close()
    for state, rounds in loads.items():
        record.add(f"start and load, {state} page cache", rounds, LOAD)
    record.add("memory of a single stream", peaks, MEMORY)


def _peak(worker: Worker, name: str, prompt: dict[str, Any]) -> float:
    """Return the most megabytes that a fresh process had, one short answer included."""
    form = "text" if name == OPENVINO else "ids"
    more = {} if name in (OURS, OPENVINO) else {"size": 1}
    worker.ask("decode", prompts=[prompt[form]], tokens=16, **more)
    return (worker.ask("memory")["peak"] or 0) / 1e6


def plugins(contenders: Contenders, plan: Plan, record: Record) -> None:
    """What the installed plugins, asked and with nothing to add, cost an answer."""
    worker = contenders.ours()
    pairs = worker.ask("plugins", rounds=plan.plugin_rounds, tokens=plan.tokens, question=QUESTION)
    alone, beside = ([each[at] for each in pairs] for at in (0, 1))
    found = {"no plugins": alone, "the installed plugins": beside}
    record.add("idle plugins", found, "s for each token", over="no plugins")
