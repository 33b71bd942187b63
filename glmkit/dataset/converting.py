"""Samples written as rows of the formats that others read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, UsageError
from ..types import Message, ToolCall
from .samples import Preference, Sample, Verdict

if TYPE_CHECKING:
    from .data import Data

Row = dict[str, Any]


def as_messages(sample: Sample) -> Row:
    """Return a sample as OpenAI and others write it; nothing of it is lost."""
    return {"messages": [_message(*each) for each in _weighted(sample)]}


def as_sharegpt(sample: Sample) -> Row:
    """Return a sample as sharegpt writes it; nothing of it is lost.

    :raises DataError: if tools are offered elsewhere than in the first message.
    """
    row: Row = {"conversations": [item for each in _weighted(sample) for item in _items(*each)]}
    first, *others = sample.messages
    if any(each.tools for each in others):
        raise _lost(sample, "tools that are offered in the middle", "sharegpt")
    if first.tools:
        row["tools"] = json.dumps([dict(each) for each in first.tools], ensure_ascii=False)
        if not first.content:
            row["conversations"] = row["conversations"][1:]
    return row


def as_alpaca(sample: Sample) -> Row:
    """Return a sample as alpaca writes it, earlier turns as history.

    :raises DataError: if it has tools or weights, which alpaca has no place for.
    """
    messages = list(sample.messages)
    if any(each.tools or each.tool_calls or each.role == "observation" for each in messages):
        raise _lost(sample, "tools", "alpaca")
    if any(not _plain(*each) for each in _weighted(sample)):
        raise _lost(sample, "weights of messages", "alpaca")
    told = [each.content for each in messages if each.role == "system"]
    said = [each.content for each in messages if each.role != "system"]
    row: Row = {"instruction": said[-2], "input": "", "output": said[-1]}
    if told:
        row["system"] = "\n".join(told)
    if said[:-2]:
        row["history"] = [list(each) for each in zip(said[:-2:2], said[1:-2:2], strict=True)]
    return row


FORMATS: dict[str, Callable[[Sample], Row]] = {
    "messages": as_messages,
    "alpaca": as_alpaca,
    "sharegpt": as_sharegpt,
}


def pair_as_messages(pair: Preference) -> Row:
    """Return a preference as TRL writes it; nothing of it is lost."""
    whole: list[Row] = as_messages(_whole(pair, 0))["messages"]
    worse: list[Row] = as_messages(_whole(pair, 1))["messages"]
    return {"prompt": whole[:-1], "chosen": whole[-1:], "rejected": worse[-1:]} | _margin(pair)


def pair_as_sharegpt(pair: Preference) -> Row:
    """Return a preference as LLaMA-Factory writes it with ``formatting: sharegpt``.

    :raises DataError: if an answer is text and a call of tools, or tools are offered elsewhere
        than in the first message.
    """
    row = as_sharegpt(_whole(pair, 0))
    answers = []
    for each in (pair.chosen, pair.rejected):
        items = list(_items(each, 1.0))
        if len(items) != 1:
            raise _lost(_whole(pair, 0), "an answer of text and a call", "sharegpt")
        answers.append(items[0])
    row["conversations"] = row["conversations"][:-1]
    return row | {"chosen": answers[0], "rejected": answers[1]} | _margin(pair)


def pair_as_alpaca(pair: Preference) -> Row:
    """Return a preference as LLaMA-Factory writes it with ``formatting: alpaca``.

    :raises DataError: if it has tools, which alpaca has no place for.
    """
    row = as_alpaca(_whole(pair, 0))
    rejected = as_alpaca(_whole(pair, 1))["output"]
    return row | {"chosen": row.pop("output"), "rejected": rejected} | _margin(pair)


def _whole(pair: Preference, which: int) -> Sample:
    """Return the conversation with the better answer (0) or the worse one (1), unweighted."""
    messages = pair.conversations[which]
    weights = tuple(float(each.role == "assistant") for each in messages)
    return Sample(messages, weights, pair.source, pair.place)


def _margin(pair: Preference) -> Row:
    return {} if pair.margin is None else {"margin": pair.margin}


PAIR_FORMATS: dict[str, Callable[[Preference], Row]] = {
    "messages": pair_as_messages,
    "alpaca": pair_as_alpaca,
    "sharegpt": pair_as_sharegpt,
}


def verdict_as_messages(verdict: Verdict) -> Row:
    """Return an answer with a verdict as TRL writes it; nothing of it is lost."""
    messages: list[Row] = as_messages(_plainly(verdict))["messages"]
    return {"prompt": messages[:-1], "completion": messages[-1:], "label": verdict.good}


def verdict_as_sharegpt(verdict: Verdict) -> Row:
    """Return an answer with a verdict as LLaMA-Factory writes it with ``formatting: sharegpt``.

    :raises DataError: if tools are offered elsewhere than in the first message.
    """
    return as_sharegpt(_plainly(verdict)) | {"kto_tag": verdict.good}


def verdict_as_alpaca(verdict: Verdict) -> Row:
    """Return an answer with a verdict as LLaMA-Factory writes it with ``formatting: alpaca``.

    :raises DataError: if it has tools, which alpaca has no place for.
    """
    return as_alpaca(_plainly(verdict)) | {"kto_tag": verdict.good}


def _plainly(verdict: Verdict) -> Sample:
    """Return the conversation with the weights that it has where none are written."""
    messages = verdict.conversation
    weights = tuple(float(each.role == "assistant") for each in messages)
    return Sample(messages, weights, verdict.source, verdict.place)


VERDICT_FORMATS: dict[str, Callable[[Verdict], Row]] = {
    "messages": verdict_as_messages,
    "alpaca": verdict_as_alpaca,
    "sharegpt": verdict_as_sharegpt,
}


def as_rows(data: Data, name: str) -> Iterator[Row]:
    """Yield what data holds as rows of a format.

    :param name: one of :data:`FORMATS`.
    :raises DataError: if a row has something that the format has no place for.
    """
    return (as_row(each, name) for each in data.rows())


def as_row(row: Sample | Preference | Verdict, name: str) -> Row:
    """Return one of these as a row of a format.

    :param name: one of :data:`FORMATS`.
    :raises DataError: if it has something that the format has no place for.
    """
    if isinstance(row, Preference):
        return PAIR_FORMATS[name](row)
    return VERDICT_FORMATS[name](row) if isinstance(row, Verdict) else FORMATS[name](row)


def _weighted(sample: Sample) -> Iterator[tuple[Message, float]]:
    return zip(sample.messages, sample.weights, strict=True)


def _plain(message: Message, weight: float) -> bool:
    """Tell whether a message has the weight that it has where none is written."""
    return weight == (1.0 if message.role == "assistant" else 0.0)


def _weight(message: Message, weight: float) -> Row:
    return (
        {} if _plain(message, weight) else {"weight": int(weight) if weight in (0, 1) else weight}
    )


def _message(message: Message, weight: float) -> Row:
    row: Row = {"role": message.role, "content": message.content}
    if message.tools:
        row["tools"] = [dict(each) for each in message.tools]
    if message.tool_calls:
        row["tool_calls"] = [
            {"type": "function", "function": _call(each)} for each in message.tool_calls
        ]
    return row | _weight(message, weight)


def _call(call: ToolCall) -> Row:
    return {"name": call.name, "arguments": dict(call.arguments)}


_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


def _items(message: Message, weight: float) -> Iterator[Row]:
    """Yield what sharegpt makes of a message: a call of tools is a turn of its own."""
    more = _weight(message, weight)
    if message.content or not message.tool_calls:
        speaker = _SPEAKERS.get(message.role, "observation")
        yield {"from": speaker, "value": message.content} | more
    if message.tool_calls:
        calls = [_call(each) for each in message.tool_calls]
        said = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
        yield {"from": "function_call", "value": said} | more


def _lost(sample: Sample, what: str, name: str) -> DataError:
    return DataError(
        f"{sample.source}, {sample.place} has {what}, which {name} has no place for; "
        "convert to messages"
    )


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path, *, overwrite: bool = False) -> int:
    """Write rows as JSON lines, or as one array where the file ends in ``.json``; count them.

    The file appears when it is whole.

    :raises UsageError: if the file is there already, or ends in something else.
    :raises DataError: if it cannot be written.
    """
    if path.suffix.lower() not in (".json", ".jsonl", ".ndjson"):
        raise UsageError(f"{path.name}: rows are written to .jsonl or .json")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; give another name, or --overwrite")
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        count = _write(rows, partial, array=path.suffix.lower() == ".json")
        partial.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path} ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return count


def _write(rows: Iterable[Mapping[str, Any]], path: Path, *, array: bool) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, row in enumerate(rows, 1):
            if array:
                file.write("[\n" if count == 1 else ",\n")
            file.write(json.dumps(row, ensure_ascii=False))
            file.write("" if array else "\n")
        if array:
            file.write("\n]\n" if count else "[]\n")
    return count
