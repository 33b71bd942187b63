"""What the tests of knowledge bases that meet trouble share."""

from __future__ import annotations

import os

from knowledge_files import finish

from glmkit.testing import HashEncoder
from glmkit_knowledge.base import KnowledgeBase

OLD = 1_600_000_000


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.utime(path, (OLD, OLD))
    return path


def rivers(folder):
    """Write twenty documents, all of the same time."""
    folder.mkdir()
    for number in range(20):
        lines = [f"## Part {part}\n\nRiver {number} has part {part}.\n" for part in range(5)]
        write(folder / f"{number:02}.md", f"# Document {number}\n\n" + "\n".join(lines))
    return folder


def opened(folder, home, **more):
    return KnowledgeBase.open(folder, home=home, encoder=HashEncoder(64), **more)


def update(folder, home, **more):
    with opened(folder, home, **more) as base:
        report, steps = finish(base.update())
        return report, contents(base), [step.stage for step in steps]


def contents(base):
    chunks = base.chunks(range(1, 100_000))
    vectors = base.vectors([chunk.id for chunk in chunks])
    best = [base.chunks([each])[0].text for each, _ in base.lexical("part", 300)]
    nearest = base.dense(base.encoder.encode(["River 3"])[0], 300)
    assert len(best) == len(nearest) == len(chunks)
    return sorted(
        (chunk.path, chunk.location, chunk.text, vector.tobytes())
        for chunk, vector in zip(chunks, vectors, strict=True)
    )


def database(home):
    (path,) = (home / "knowledge").glob("*.sqlite")
    return path
