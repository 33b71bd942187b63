"""Fit the similarity scale of the knowledge plugin and say how good it is.

    python benchmarks/calibrate.py --cmrc ../shared/data/cmrc2018/cmrc2018_dev.json

The data, all in one knowledge base:

* CMRC 2018 (dev), 70 paragraphs, two questions each.
* ``calibration.jsonl``: short documents written for this purpose, in Chinese and English, with
  questions in both languages. A question without an answer is about its document's subject too.

All of it twice: with whole documents, and with documents in short sections of two sentences, since
folders hold both. Each answerable question is asked again with its document taken out of the base,
and those of CMRC once more with only the chunks that hold the answer taken out.

Each question's candidates are labelled by whether they hold the answer, and one logistic curve is
fitted for passages in the question's language and one for those in another. The figures printed
are from cross-validation over questions. The constants go into ``glmkit_knowledge/calibrate.py``
by hand. The sample knowledge base takes no part, so that it can check the result.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np

from glmkit import Encoder, Glmkit, show_progress
from glmkit_knowledge.base import KnowledgeBase, StoredChunk
from glmkit_knowledge.calibrate import Evidence
from glmkit_knowledge.retrieve import Retriever
from glmkit_knowledge.sentences import split_sentences
from glmkit_knowledge.terms import is_chinese

HERE = Path(__file__).parent
FOLDS = 8
# How much a question counts. CMRC's questions borrow the wording of their paragraph, as people who
# know the text do; those who ask a folder of documents use words of their own. And most questions
# without an answer are about something that the folder does not mention at all.
WEIGHTS = {
    "own": 3.0,
    "own, unanswerable": 0.3,
    "own, no document": 0.8,
    "cmrc": 0.5,
    "cmrc, no chunk": 0.0,
    "cmrc, no document": 0.2,
}
RIDGE = 0.02
COVERAGE = list(Evidence.__dataclass_fields__).index("coverage")
THRESHOLDS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)


@dataclass(frozen=True)
class Case:
    """A question, the file it is about and the texts that answer it (none: unanswerable)."""

    question: str
    path: str
    answers: tuple[str, ...]
    hide: tuple[str, ...] = ()
    """Chunks of the file that hold one of these ("": all) are taken out of the base."""
    kind: str = "own"
    """A key of :data:`WEIGHTS`."""

    def answered_by(self, chunk: StoredChunk) -> bool:
        return chunk.path == self.path and any(each in chunk.text for each in self.answers)

    def hides(self, chunk: StoredChunk) -> bool:
        return chunk.path == self.path and any(each in chunk.text for each in self.hide)


class Without:
    """A knowledge base without some of its chunks."""

    def __init__(self, base: KnowledgeBase, hidden: set[int]) -> None:
        self._base = base
        self._hidden = hidden
        self.chunks = base.chunks
        self.vectors = base.vectors

    def dense(self, vector: np.ndarray, k: int) -> list[tuple[int, float]]:
        found = self._base.dense(vector, k + len(self._hidden))
        return [pair for pair in found if pair[0] not in self._hidden][:k]

    def lexical(self, query: str, k: int) -> list[tuple[int, float]]:
        found = self._base.lexical(query, k + len(self._hidden))
        return [pair for pair in found if pair[0] not in self._hidden][:k]


def document(title: str, text: str, *, sections: bool) -> str:
    """Return a Markdown document, in one piece or in sections of two sentences."""
    if not sections:
        return f"# {title}\n\n{text}\n"
    sentences = split_sentences(text)
    pairs = [
        "".join(sentences[at : at + 2]) if is_chinese(text) else " ".join(sentences[at : at + 2])
        for at in range(0, len(sentences), 2)
    ]
    return f"# {title}\n\n" + "\n\n".join(f"## {n}\n\n{pair}" for n, pair in enumerate(pairs, 1))


def read_cmrc(path: Path, folder: Path, *, sections: bool, paragraphs: int = 70) -> Iterator[Case]:
    """Write paragraphs into ``folder`` and yield two questions of each, with and without answer."""
    picker = random.Random(7)
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    found = [
        each | {"title": article.get("title", "")}
        for article in articles
        for each in article["paragraphs"]
    ]
    picker.shuffle(found)
    for number, paragraph in enumerate(found[:paragraphs]):
        name = f"cmrc-{number}.md"
        text = document(paragraph["title"], paragraph["context"], sections=sections)
        (folder / name).write_text(text, encoding="utf-8")
        for asked in picker.sample(paragraph["qas"], min(2, len(paragraph["qas"]))):
            answers = tuple(each["text"] for each in asked["answers"])
            yield Case(asked["question"], name, answers, kind="cmrc")
            yield Case(asked["question"], name, (), hide=answers, kind="cmrc, no chunk")
            yield Case(asked["question"], name, (), hide=("",), kind="cmrc, no document")


def read_own(path: Path, folder: Path, *, sections: bool) -> Iterator[Case]:
    """Write the documents of ``calibration.jsonl`` into ``folder`` and yield their questions."""
    for line in path.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        text = document(found["title"], found["text"], sections=sections)
        (folder / found["path"]).write_text(text, encoding="utf-8")
        for asked in found["questions"]:
            if asked["answer"] is None:
                yield Case(asked["question"], found["path"], (), kind="own, unanswerable")
                continue
            yield Case(asked["question"], found["path"], (asked["answer"],))
            yield Case(asked["question"], found["path"], (), hide=("",), kind="own, no document")


@dataclass(frozen=True)
class Row:
    """One candidate of one case."""

    case: int
    evidence: Evidence
    answers: bool


def gather(cases: Sequence[Case], base: KnowledgeBase, encoder: Encoder, home: Path) -> list[Row]:
    """Return the candidates of every case with their features."""
    count = len(base)
    everything = base.chunks(
        [each for each, _ in base.dense(encoder.encode(["a"], kind="query")[0], count)]
    )
    retriever = Retriever(base, encoder, home=home)
    rows: list[Row] = []
    for number, case in enumerate(cases):
        hidden = {chunk.id for chunk in everything if case.hides(chunk)}
        retriever.base = Without(base, hidden) if hidden else base
        rows += [
            Row(number, evidence, case.answered_by(chunk))
            for chunk, evidence in retriever.evidence(case.question)
        ]
    return rows


def fit(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the coefficients, bias first, of a ridge-penalised logistic regression (Newton)."""
    inputs = np.hstack([np.ones((len(features), 1)), features])
    penalty = np.full(inputs.shape[1], RIDGE * len(inputs) / 100)
    penalty[0] = 1e-6
    found = np.zeros(inputs.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-inputs @ found))
        slope = inputs.T @ (weights * (labels - p)) - penalty * found
        bend = (inputs * (weights * p * (1 - p))[:, None]).T @ inputs + np.diag(penalty)
        step = np.linalg.solve(bend, slope)
        found += step
        if np.abs(step).max() < 1e-8:
            break
    return found


class Fit:
    """The two curves fitted to some rows."""

    def __init__(self, rows: Sequence[Row], cases: Sequence[Case]) -> None:
        self.curves = {}
        for far in (False, True):
            some = [row for row in rows if bool(row.evidence.crossing) == far]
            features = np.array([astuple(row.evidence) for row in some])
            labels = np.array([row.answers for row in some], dtype=float)
            weights = np.array([WEIGHTS[cases[row.case].kind] for row in some])
            if not far:
                # Each question also as somebody would ask it who shares few words with the text.
                reworded = features.copy()
                reworded[:, COVERAGE] *= 0.2
                features = np.vstack([features, reworded])
                labels = np.hstack([labels, labels])
                weights = np.hstack([weights, weights]) / 2
            self.curves[far] = fit(features, labels, weights)

    def probability(self, evidence: Evidence) -> float:
        curve = self.curves[bool(evidence.crossing)]
        return float(1 / (1 + np.exp(-curve[0] - np.dot(curve[1:], astuple(evidence)))))


def cross_validate(rows: Sequence[Row], cases: Sequence[Case]) -> dict[int, tuple[float, bool]]:
    """Return, per case, the best candidate's probability and whether that candidate answers.

    Cases with the same question are in the same fold.
    """
    questions = list(dict.fromkeys(case.question for case in cases))
    fold = {question: number % FOLDS for number, question in enumerate(questions)}
    best: dict[int, tuple[float, bool]] = {}
    for each in range(FOLDS):
        fitted = Fit([row for row in rows if fold[cases[row.case].question] != each], cases)
        for row in rows:
            if fold[cases[row.case].question] == each:
                guess = (fitted.probability(row.evidence), row.answers)
                best[row.case] = max(best.get(row.case, (-1.0, False)), guess)
    return best


def report(best: dict[int, tuple[float, bool]], cases: Sequence[Case]) -> None:
    """Print how well answerable and unanswerable questions are told apart."""
    from glmkit import language_of

    for kind in WEIGHTS:
        for language in ("zh", "en"):
            chosen = [
                number
                for number, case in enumerate(cases)
                if case.kind == kind and language_of(case.question) == language and number in best
            ]
            if chosen:
                scores = np.array([best[each][0] for each in chosen])
                right = np.mean([best[each][1] for each in chosen])
                said = (
                    f"{kind} {language}: {len(chosen)} questions, best passage answers {right:.3f}"
                )
                shares = (f"{each:.2f}: {(scores < each).mean():.3f}" for each in THRESHOLDS)
                print(f"{said}; refused at {', '.join(shares)}")


def prepare(folder: Path, cmrc: Path | None, *, sections: bool) -> list[Case]:
    """Write all documents into ``folder`` and return the questions."""
    folder.mkdir()
    cases = list(read_own(HERE / "calibration.jsonl", folder, sections=sections))
    if cmrc is not None:
        cases += read_cmrc(cmrc, folder, sections=sections)
    return cases


def main(encoder: Encoder, cmrc: Path | None) -> None:
    """Fit, print the constants, and print the cross-validated figures."""
    cases: list[Case] = []
    rows: list[Row] = []
    for sections in (False, True):
        with tempfile.TemporaryDirectory() as place:
            more = prepare(Path(place, "documents"), cmrc, sections=sections)
            base = KnowledgeBase.open(Path(place, "documents"), home=Path(place), encoder=encoder)
            with base:
                show_progress(base.update())
                found = gather(more, base, encoder, Path(place))
        rows += [replace(row, case=row.case + len(cases)) for row in found]
        cases += more
    report(cross_validate(rows, cases), cases)
    names = ("bias", *Evidence.__dataclass_fields__)
    for far, curve in Fit(rows, cases).curves.items():
        print(
            "far " if far else "near",
            {n: round(float(v), 2) for n, v in zip(names, curve, strict=True)},
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cmrc", type=Path, help="cmrc2018_dev.json; without it only our own data")
    parser.add_argument("--encoder", help="catalog name, hub id or folder")
    given = parser.parse_args()
    main(Glmkit(watch=show_progress).load_encoder(given.encoder), given.cmrc)
