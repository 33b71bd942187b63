"""Write the two binary documents of the sample knowledge base, the same bytes every time.

Run ``python tools/sample_documents.py`` after changing their text below.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parents[1] / "knowledge" / "geography"

ISLANDS = """\
# 世界的岛屿
四面环水、比大陆小的陆地叫作岛屿。按成因可以分为大陆岛、火山岛和珊瑚岛。
## 面积最大的岛屿
格陵兰岛是世界上最大的岛，面积约 216.6 万平方公里，是丹麦王国的自治领地，全岛约五分之四被冰盖覆盖。
新几内亚岛居第二位，面积约 78.6 万平方公里，西半部属于印度尼西亚，东半部属于巴布亚新几内亚。
婆罗洲居第三位，由印度尼西亚、马来西亚和文莱三个国家分治，岛上的雨林是红毛猩猩的家园。
马达加斯加岛居第四位，位于非洲东南方的印度洋中，狐猴只在这里有野生种群。
## 人口最多的岛屿
爪哇岛是世界上人口最多的岛屿，居民超过一亿五千万，土壤肥沃，火山众多。
## 火山岛
冰岛位于大西洋中脊之上，一边是北美板块，一边是欧亚板块，地热资源十分丰富。
加拉帕戈斯群岛属于厄瓜多尔。1835 年，达尔文随小猎犬号到访，岛上的地雀和象龟启发了他的进化论。
复活节岛属于智利，以近千尊名为摩艾的巨石像闻名。
## 珊瑚岛
马尔代夫由一千多座珊瑚岛组成，是地势最低的国家，平均海拔只有约 1.5 米。"""

PASSAGES = (
    """\
Canals and straits

Artificial waterways

The Suez Canal in Egypt joins the Mediterranean and the Red Sea. It was
opened in 1869 and is 193 kilometres long. Because both seas have nearly
the same level, it needs no locks. In March 2021 the container ship Ever
Given ran aground there and blocked all traffic for six days.

The Panama Canal joins the Atlantic and the Pacific. The first ship passed
through it in August 1914. Locks lift the ships 26 metres to the level of
Gatun Lake and lower them again on the other side. The passage is about
80 kilometres long and takes eight to ten hours.

The Grand Canal of China runs from Beijing to Hangzhou. With a length of
almost 1,800 kilometres it is the longest canal in the world. Its oldest
parts date back to the fifth century BC.""",
    """\
Narrow seas

The Strait of Malacca lies between Sumatra and the Malay Peninsula. It is
the shortest sea route from the Indian Ocean to East Asia and one of the
busiest shipping lanes on Earth.

The Strait of Gibraltar separates Spain from Morocco and is only about
13 kilometres wide at its narrowest point.

The Bering Strait, some 85 kilometres wide, separates Siberia from Alaska.
In the last ice age the sea was lower, and people could walk across.

The English Channel is crossed by a railway tunnel of 50.5 kilometres,
which was opened in 1994. Of its length, 38 kilometres lie under the sea.""",
)

_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_KIND = "application/vnd.openxmlformats-officedocument.wordprocessingml"
_STYLES = "".join(
    f'<w:style w:type="paragraph" w:styleId="{name.title().replace(" ", "")}"{default}>'
    f'<w:name w:val="{name}"/></w:style>'
    for name, default in (("Normal", ' w:default="1"'), ("heading 1", ""), ("heading 2", ""))
)
_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'


def main() -> None:
    """Write both files."""
    write_docx(FOLDER / "islands.zh.docx", ISLANDS)
    (FOLDER / "canals.en.pdf").write_bytes(pdf(PASSAGES))


def write_docx(path: Path, text: str) -> None:
    """Write ``text`` as a Word document; lines that begin with # or ## become headings."""
    parts = {
        "[Content_Types].xml": (
            f'<Types xmlns="{_PACKAGE}/content-types"><Default Extension="rels" '
            'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            f'<Override PartName="/word/document.xml" ContentType="{_KIND}.document.main+xml"/>'
            f'<Override PartName="/word/styles.xml" ContentType="{_KIND}.styles+xml"/></Types>'
        ),
        "_rels/.rels": _relationship("officeDocument", "word/document.xml"),
        "word/_rels/document.xml.rels": _relationship("styles", "styles.xml"),
        "word/styles.xml": f'<w:styles xmlns:w="{_WORD}">{_STYLES}</w:styles>',
        "word/document.xml": (
            f'<w:document xmlns:w="{_WORD}"><w:body>'
            + "".join(map(_paragraph, text.splitlines()))
            + "</w:body></w:document>"
        ),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            # ZipInfo's own date is 1980, and nothing is compressed: neither the clock nor the
            # version of zlib changes the bytes.
            archive.writestr(zipfile.ZipInfo(name), _HEAD + content)


def _relationship(kind: str, target: str) -> str:
    return (
        f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="rId1" '
        f'Type="{_OFFICE}/{kind}" Target="{target}"/></Relationships>'
    )


def _paragraph(line: str) -> str:
    marks = len(line) - len(line.lstrip("#"))
    style = f'<w:pPr><w:pStyle w:val="Heading{marks}"/></w:pPr>' if marks else ""
    return f"<w:p>{style}<w:r><w:t>{escape(line.lstrip('# '))}</w:t></w:r></w:p>"


def pdf(pages: tuple[str, ...]) -> bytes:
    """Return a PDF with one page per text (ASCII, lines short enough to fit)."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {len(pages)} /Kids [{kids}] >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R >>"
        )
        lines = (line.translate(_ESCAPES) for line in text.splitlines())
        shown = " ".join(f"({line}) Tj T*" for line in lines)
        body = f"BT /F1 12 Tf 72 770 Td 16 TL {shown} ET"
        objects.append(f"<< /Length {len(body)} >>\nstream\n{body}\nendstream")
    return _with_table(objects)


_ESCAPES = str.maketrans({"(": r"\(", ")": r"\)", "\\": r"\\"})


def _with_table(objects: list[str]) -> bytes:
    """Number the objects and add the table that says where each one begins."""
    file = b"%PDF-1.4\n"
    offsets = []
    for number, each in enumerate(objects, start=1):
        offsets.append(len(file))
        file += f"{number} 0 obj\n{each}\nendobj\n".encode("ascii")
    rows = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    tail = (
        f"xref\n0 {size}\n0000000000 65535 f \n{rows}"
        f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(file)}\n%%EOF\n"
    )
    return file + tail.encode("ascii")


if __name__ == "__main__":
    main()
