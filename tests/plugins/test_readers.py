"""The readers: what they keep, what they leave out, and how they refuse."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from knowledge_files import write_pdf

from glmkit import DataError
from glmkit_knowledge.readers import READERS, Section, read


def write(path: Path, content: str | bytes) -> Path:
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    return path


def sections(path: Path) -> list[Section]:
    return list(read(path))


def shown(path: Path) -> list[tuple[tuple[str, ...], str]]:
    return [(each.headings, each.text.strip()) for each in read(path)]


# -- Markdown ----------------------------------------------------------------------------------


def test_markdown_headings_form_a_path(tmp_path):
    path = write(
        tmp_path / "a.md",
        "# Rivers #\n\nLong ones.\n\n## The *Nile* [x](http://y)\n\nIn Africa.\n\n"
        "### Delta\n\nFlat.\n\n## Amazon\n\nIn America.\n",
    )
    assert shown(path) == [
        (("Rivers",), "Long ones."),
        (("Rivers", "The Nile x"), "In Africa."),
        (("Rivers", "The Nile x", "Delta"), "Flat."),
        (("Rivers", "Amazon"), "In America."),
    ]


def test_markdown_setext_headings(tmp_path):
    path = write(tmp_path / "a.md", "Rivers\n======\n\nLong.\n\nNile\n----\nAfrica.\n")
    assert shown(path) == [(("Rivers",), "Long."), (("Rivers", "Nile"), "Africa.")]
    assert [each.line for each in read(path)] == [3, 8]


def test_markdown_rules_and_tables_are_no_headings(tmp_path):
    text = "- item\n---\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert shown(write(tmp_path / "a.md", text)) == [((), text.strip())]


def test_markdown_code_is_no_heading(tmp_path):
    text = (
        "# Top\n\n```python\n# comment\n~~~\n```` not closed by longer open\n```\n\n## Next\n\nx\n"
    )
    found = shown(write(tmp_path / "a.md", text))
    assert [headings for headings, _ in found] == [("Top",), ("Top", "Next")]
    assert "# comment" in found[0][1]


def test_markdown_front_matter_is_no_heading(tmp_path):
    path = write(tmp_path / "a.md", "---\ntitle: Rivers\n---\n\n# Top\n\nText.\n")
    assert shown(path) == [((), "---\ntitle: Rivers\n---"), (("Top",), "Text.")]


def test_markdown_heading_with_nothing_under_it_is_text(tmp_path):
    path = write(tmp_path / "a.md", "# Plan\n## Buy bread\n## Sell house\n### Soon\n")
    assert shown(path) == [
        (("Plan",), "Buy bread"),
        (("Plan", "Sell house"), "Soon"),
    ]


def test_markdown_embedded_images_are_cut(tmp_path):
    picture = "![x](data:image/png;base64," + "iVBORw0KGgo" * 400 + ")"
    (only,) = sections(write(tmp_path / "a.md", f"Before.\n\n{picture}\n\nAfter.\n"))
    assert "iVBOR" not in only.text
    assert only.text.count("\n") == 5


# -- Text --------------------------------------------------------------------------------------

CHINESE = (
    "长江是亚洲最长的河流，全长约六千三百公里，发源于青藏高原。"
    "它流经十一个省级行政区，最后在上海注入东海。\n"
)
TRADITIONAL = (
    "長江是亞洲最長的河流，全長約六千三百公里，發源於青藏高原。"
    "它流經十一個省級行政區，最後在上海注入東海。\n"
)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (CHINESE, "utf-8"),
        (CHINESE, "utf-8-sig"),
        (CHINESE, "gb18030"),
        (CHINESE, "gbk"),
        (TRADITIONAL, "big5"),
        (CHINESE, "utf-16"),
        ("Rivers are long. 河 \n" * 9, "utf-16-le"),
        ("Rivers are long. 河 \n" * 9, "utf-16-be"),
        ("Le café est à côté de la rivière, près du château où naît l'été.\n", "cp1252"),
    ],
)
def test_text_encodings(tmp_path, text, encoding):
    (only,) = sections(write(tmp_path / "a.txt", text.encode(encoding)))
    assert only.text == text


@pytest.mark.parametrize("encoding", ["gb18030", "big5"])
@pytest.mark.parametrize("text", ["尼羅河全長", "最大的河流"])
def test_short_chinese_texts(tmp_path, text, encoding):
    (only,) = sections(write(tmp_path / "a.txt", text.encode(encoding, "ignore")))
    assert not set(only.text) & set("\ufffd")


def test_bytes_that_are_not_utf8_far_into_a_large_file(tmp_path):
    text = "plain ascii line\n" * 30_000 + CHINESE
    joined = "".join(each.text for each in read(write(tmp_path / "a.txt", text.encode("gb18030"))))
    assert joined == text


def test_windows_line_ends_keep_line_numbers(tmp_path):
    (only,) = sections(write(tmp_path / "a.txt", "one\r\ntwo\r\nthree\r"))
    assert only.text == "one\ntwo\nthree\n"


def test_large_text_comes_in_blocks_with_right_lines(tmp_path):
    path = write(tmp_path / "a.txt", "".join(f"line {n}\n\n" for n in range(1, 60_001, 2)))
    found = sections(path)
    assert len(found) > 3
    assert all(each.text.startswith(f"line {each.line}\n") for each in found)


def test_a_text_without_line_ends_is_read(tmp_path):
    text = "word " * 400_000
    assert "".join(each.text for each in read(write(tmp_path / "a.txt", text))) == text


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.csv"])
def test_binary_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="binary"):
        sections(write(tmp_path / name, b"\x7fELF\x00\x01\x00" + bytes(range(256)) * 20))


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), suffix=st.sampled_from([".txt", ".md", ".csv", ".html"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data, suffix):
    path = write(tmp_path_factory.getbasetemp() / f"any{suffix}", data)
    try:
        for each in read(path):
            each.text.encode("utf-8")
            assert "\0" not in each.text
    except DataError as error:
        assert str(error)


# -- HTML --------------------------------------------------------------------------------------


def test_html_keeps_text_and_leaves_furniture(tmp_path):
    page = """<html><head><title>Site</title><style>p {color: red}</style></head><body>
    <nav>Home | About</nav><script>var secret = 1;</script>
    <h1>Rivers</h1><p>Long <b>and</b> wide,<br>or so.</p>
    <h2>Longest</h2><ul><li>Nile</li><li>Amazon</li></ul>
    <table><tr><th>Name</th><th>km</th></tr><tr><td>Nile</td><td>6650</td></tr></table>
    <p hidden>unseen</p><p style="display: none">unseen</p><!-- a remark -->
    <pre>code
      kept</pre><footer>Imprint</footer></body></html>"""
    assert shown(write(tmp_path / "a.html", page)) == [
        (("Rivers",), "Long and wide,\nor so."),
        (
            ("Rivers", "Longest"),
            "- Nile\n- Amazon\nName | km\nNile | 6650\ncode\nkept",
        ),
    ]


def test_html_title_stands_in_for_a_missing_heading(tmp_path):
    page = "<title>Rivers</title><body><h2>Nile</h2><p>Long.</p>"
    assert shown(write(tmp_path / "a.html", page)) == [(("Rivers", "Nile"), "Long.")]


def test_html_charset_is_taken_from_the_page(tmp_path):
    page = '<meta charset="gb2312"><body><p>朱镕基在长江边。</p>'
    assert shown(write(tmp_path / "a.html", page.encode("gb18030")))[0][1] == "朱镕基在长江边。"


def test_html_layout_tables_keep_their_headings(tmp_path):
    page = "<table><tr><td><h1>Top</h1><p>One.</p></td><td><p>Two.</p></td></tr></table>"
    assert shown(write(tmp_path / "a.htm", page)) == [(("Top",), "One.\nTwo.")]


def test_html_may_nest_deeply(tmp_path):
    page = "<body>" + "<div>" * 5000 + "deep" + "</div>" * 5000
    found = shown(write(tmp_path / "a.html", page))
    assert found in ([((), "deep")], [])


# -- PDF ---------------------------------------------------------------------------------------


def test_pdf_pages(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", [["The Nile is long."], [], ["The end."]])
    assert [(each.page, each.text) for each in read(path)] == [
        (1, "The Nile is long."),
        (3, "The end."),
    ]


def test_pdf_wrapped_lines_are_joined(tmp_path):
    lines = [
        "The Nile flows through eleven coun-",
        "tries of Africa and then into the",
        "sea.",
        "End",
    ]
    (only,) = sections(write_pdf(tmp_path / "a.pdf", [lines]))
    assert (
        only.text == "The Nile flows through eleven countries of Africa and then into the sea.\nEnd"
    )


def test_pdf_without_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="no text in its 2 page"):
        sections(write_pdf(tmp_path / "a.pdf", [[], []]))


@pytest.mark.parametrize("password", ["secret", ""])
def test_pdf_encryption(tmp_path, password):
    from pypdf import PdfWriter

    plain = write_pdf(tmp_path / "plain.pdf", [["Hidden river."]])
    writer = PdfWriter()
    writer.append(str(plain))
    writer.encrypt(password, "owner", algorithm="RC4-128")
    writer.write(str(tmp_path / "a.pdf"))
    if password:
        with pytest.raises(DataError, match="encrypted"):
            sections(tmp_path / "a.pdf")
    else:
        assert sections(tmp_path / "a.pdf")[0].text == "Hidden river."


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_pdf_damage_is_refused_quietly(tmp_path, share, capfd):
    whole = write_pdf(tmp_path / "whole.pdf", [["A river."]]).read_bytes()
    path = write(tmp_path / "a.pdf", whole[: int(len(whole) * share)] + os.urandom(40))
    with pytest.raises(DataError):
        sections(path)
    assert capfd.readouterr() == ("", "")


# -- Word --------------------------------------------------------------------------------------


def test_docx_keeps_the_order(tmp_path):
    import docx

    document = docx.Document()
    document.add_paragraph("Before all.")
    document.add_heading("Rivers", 1)
    document.add_paragraph("Long ones.")
    table = document.add_table(2, 2)
    for cell, text in zip(
        [*table.rows[0].cells, *table.rows[1].cells], ["Name", "km", "Nile", "6650"], strict=True
    ):
        cell.text = text
    document.add_paragraph("After the table.")
    document.add_heading("Amazon", 2)
    document.add_paragraph("Wide.", style="List Bullet")
    document.save(str(tmp_path / "a.docx"))
    assert shown(tmp_path / "a.docx") == [
        ((), "Before all."),
        (("Rivers",), "Long ones.\nName | km\nNile | 6650\nAfter the table."),
        (("Rivers", "Amazon"), "Wide."),
    ]
    assert [each.place for each in read(tmp_path / "a.docx")][:2] == ["paragraph 1", "paragraph 3"]


def test_docx_text_in_content_controls(tmp_path):
    import docx
    from docx.oxml import parse_xml

    document = docx.Document()
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    control = f'<w:sdt xmlns:w="{space}"><w:sdtContent><w:p><w:r><w:t>Inside.</w:t></w:r></w:p>'
    document.element.body.insert(0, parse_xml(control + "</w:sdtContent></w:sdt>"))
    document.save(str(tmp_path / "a.docx"))
    assert shown(tmp_path / "a.docx") == [((), "Inside.")]


def test_docx_damage_is_refused(tmp_path):
    with pytest.raises(DataError, match="no Word document"):
        sections(write(tmp_path / "a.docx", b"PK\x03\x04 not a zip"))
    with zipfile.ZipFile(tmp_path / "b.docx", "w") as archive:
        archive.writestr("hello.txt", "no document")
    with pytest.raises(DataError):
        sections(tmp_path / "b.docx")


def test_docx_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("glmkit_knowledge.readers.word.MAX_UNPACKED_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "a.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"0" * 100_000)
    with pytest.raises(DataError, match="unpacks to"):
        sections(tmp_path / "a.docx")


# -- CSV ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_csv_rows_name_their_columns(tmp_path, mark):
    text = f"问题{mark}答案\n尼罗河多长？{mark}6650公里\n亚马逊河呢？{mark}6400公里\n"
    assert [(each.text, each.place) for each in read(write(tmp_path / "a.csv", text))] == [
        ("问题: 尼罗河多长？\n答案: 6650公里", "row 2"),
        ("问题: 亚马逊河呢？\n答案: 6400公里", "row 3"),
    ]


def test_csv_without_a_header(tmp_path):
    text = "尼罗河多长？,6650公里。\n亚马逊河呢？,6400公里。\n"
    found = [(each.text, each.place) for each in read(write(tmp_path / "a.csv", text))]
    assert found[0] == ("尼罗河多长？\n6650公里。", "row 1")


def test_csv_cells_with_line_ends_and_quotes(tmp_path):
    buffer = io.StringIO()
    import csv

    csv.writer(buffer).writerows([["q", "a"], ['say "hi", or', "line 1\nline 2"], ["x", ""]])
    found = sections(write(tmp_path / "a.csv", buffer.getvalue()))
    assert [each.text for each in found] == ['q: say "hi", or\na: line 1\nline 2', "q: x"]
    assert all(each.whole for each in found)


def test_csv_long_rows_have_a_heading(tmp_path):
    text = f"id,question,answer\n7,How long is the Nile?,{'It is long. ' * 60}\n"
    (only,) = sections(write(tmp_path / "a.csv", text))
    assert only.headings == ("How long is the Nile?",)


# -- All ---------------------------------------------------------------------------------------


def test_every_reader_refuses_a_file_that_is_gone(tmp_path):
    for suffix in READERS:
        with pytest.raises(DataError, match="cannot be read"):
            sections(tmp_path / f"gone{suffix}")


def test_a_parser_that_breaks_is_a_refusal(tmp_path):
    def broken(path):
        yield Section("one")
        raise KeyError("/Root")

    with pytest.raises(DataError, match=r"not a \.pdf file: KeyError"):
        list(read(tmp_path / "a.pdf", {".pdf": broken}))


def test_text_that_cannot_be_stored_is_cleaned(tmp_path):
    def odd(path):
        yield Section("a\0b\ud800c", headings=("x\ud800",))

    (only,) = read(tmp_path / "a.txt", {".txt": odd})
    assert (only.text, only.headings) == ("ab?c", ("x?",))


def test_real_documents(shared_data):
    folder = shared_data / "chatchat-kb"
    found = {
        path.name: sections(path)
        for path in folder.rglob("*")
        if path.suffix in (".md", ".pdf", ".csv")
    }
    assert {each.page for each in found["langchain.pdf"]} >= {1, 2, 3}
    assert "LangChain" in found["langchain.pdf"][0].text
    assert len(found["langchain-ChatGLM_open.csv"]) == 323
    assert all(
        "\ufffd" not in each.text for name, all_of in found.items() for each in all_of if name
    )
