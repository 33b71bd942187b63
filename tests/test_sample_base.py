"""The sample knowledge base keeps its promises: what it asks, it can answer, and nothing more."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path

import docx
import pypdf
import pytest

from glmkit_knowledge.chunking import chunk
from glmkit_knowledge.readers import read as read_sections

ROOT = Path(__file__).parents[1]
BASE = ROOT / "knowledge"
FORMATS = {".md", ".txt", ".html", ".csv", ".docx", ".pdf"}


def read_docx(path: Path) -> str:
    return "\n".join(each.text for each in docx.Document(str(path)).paragraphs)


def read_pdf(path: Path) -> str:
    # Closed here: a reader that is given a path keeps the file open.
    with path.open("rb") as file:
        return "\n".join(page.extract_text() for page in pypdf.PdfReader(file, strict=True).pages)


def read(path: Path) -> str:
    special = {".docx": read_docx, ".pdf": read_pdf}.get(path.suffix)
    return special(path) if special else path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def documents() -> dict[str, str]:
    files = (each for each in BASE.rglob("*") if each.suffix in FORMATS)
    return {each.relative_to(BASE).as_posix(): read(each) for each in files}


@pytest.fixture(scope="module")
def questions() -> list[dict[str, str | None]]:
    lines = (BASE / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def answerable(questions: list[dict], language: str | None = None) -> list[dict]:
    return [
        each
        for each in questions
        if each["source"] and (language is None or each["language"] == language)
    ]


def language_of(source: str) -> str:
    """Return the language that a document's name states: ``rivers.zh.md`` is Chinese."""
    return source.split(".")[-2]


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)


def folded(question: str) -> str:
    return question.strip("?？。 ").casefold()


def test_folder_holds_documents_and_questions_only(documents: dict[str, str]) -> None:
    files = {each.relative_to(BASE).as_posix() for each in BASE.rglob("*") if each.is_file()}
    assert files == set(documents) | {"questions.jsonl"}
    assert len(documents) >= 10
    assert sum((BASE / each).stat().st_size for each in files) < 150_000


def test_every_format_is_present_in_a_short_document(documents: dict[str, str]) -> None:
    assert {Path(each).suffix for each in documents} == FORMATS
    for path, text in documents.items():
        assert 400 <= len(text) <= 3000, path
        assert language_of(path) in {"zh", "en"}, path


def test_documents_are_written_in_the_language_of_their_name(documents: dict[str, str]) -> None:
    for path, text in documents.items():
        share = sum(is_chinese(letter) for letter in text) / len(text)
        assert (share > 0.3) == (language_of(path) == "zh"), (path, share)


def test_questions_have_one_shape(questions: list[dict]) -> None:
    for each in questions:
        assert list(each) == ["question", "language", "answer", "source"]
        assert each["question"].strip() == each["question"] != ""
        assert (each["answer"] is None) == (each["source"] is None), each
        assert (each["language"] == "zh") == is_chinese(each["question"]), each


def test_no_question_is_asked_twice(questions: list[dict]) -> None:
    seen = Counter(folded(each["question"]) for each in questions)
    assert [question for question, times in seen.items() if times > 1] == []


def test_scores_were_not_fitted_to_these_questions(questions: list[dict]) -> None:
    lines = (ROOT / "benchmarks" / "calibration.jsonl").read_text(encoding="utf-8").splitlines()
    fitted = {folded(each["question"]) for line in lines for each in json.loads(line)["questions"]}
    assert fitted & {folded(each["question"]) for each in questions} == set()


def test_sources_contain_their_answers(questions: list[dict], documents: dict[str, str]) -> None:
    for each in answerable(questions):
        assert each["answer"] in documents[each["source"]], each
        # A citation shows lines: an answer that a line break cuts could not be quoted.
        assert "\n" not in each["answer"], each


def test_answers_survive_reading_in_one_piece(questions: list[dict]) -> None:
    pieces = {
        source: [each.text for each in chunk(read_sections(BASE / source))]
        for source in {each["source"] for each in answerable(questions)}
    }
    lost = [
        each["question"]
        for each in answerable(questions)
        if not any(each["answer"] in text for text in pieces[each["source"]])
    ]
    assert lost == []


def test_answers_point_to_one_document(questions: list[dict], documents: dict[str, str]) -> None:
    several = [
        each["question"]
        for each in answerable(questions)
        if sum(each["answer"] in text for text in documents.values()) > 1
    ]
    # A name may be mentioned in passing elsewhere; that must stay the exception.
    assert len(several) <= 2, several


def test_every_document_is_asked_about(questions: list[dict], documents: dict[str, str]) -> None:
    assert set(documents) == {each["source"] for each in answerable(questions)}


def test_languages_and_unanswerable_questions_have_their_shares(questions: list[dict]) -> None:
    assert len(questions) >= 60
    for language in ("zh", "en"):
        asked = [each for each in questions if each["language"] == language]
        without = [each for each in asked if each["source"] is None]
        assert 0.45 <= len(asked) / len(questions) <= 0.55
        assert len(without) / len(asked) == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize(("asked", "written"), [("zh", "en"), ("en", "zh")])
def test_questions_cross_the_languages(questions: list[dict], asked: str, written: str) -> None:
    crossing = [
        each for each in answerable(questions, asked) if language_of(each["source"]) == written
    ]
    assert len(crossing) >= 6


def test_seed_question_is_asked_and_answered_plainly(
    questions: list[dict], documents: dict[str, str]
) -> None:
    (seed,) = [each for each in questions if each["question"] == "世界上最大的河流"]
    assert (seed["answer"], seed["source"]) == ("亚马孙河", "geography/rivers.zh.md")
    assert "世界上最大的河流是亚马孙河。" in documents["geography/rivers.zh.md"]


def test_binary_documents_are_what_their_script_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ROOT / "tools" / "sample_documents.py"
    spec = importlib.util.spec_from_file_location("sample_documents", place)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    script.main()
    for name in ("islands.zh.docx", "canals.en.pdf"):
        assert (tmp_path / name).read_bytes() == (BASE / "geography" / name).read_bytes()
