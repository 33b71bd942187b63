"""Measure glmkit against its peers on the embedded default, in turns on this machine.

    python benchmarks/run.py [--quick] [--only single,batch,chat,loading,plugins] [--out FILE]

Each contender is a process started from here. They take turns, round after round, so that whatever
else the machine does hits all alike; ratios are taken within a round. The figures and every round's
raw numbers go into benchmarks/results/<date>-<machine>.json. All contenders decode greedily, the
same prompts, exactly as many tokens. Peers that are not installed are told as absent.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import sections
from contenders import Contenders
from prepare import default_folder
from record import ROOT, Record
from worker import AbsentError

SECTIONS = {
    "loading": sections.loading,
    "single": sections.single,
    "batch": sections.batch,
    "chat": sections.chat,
    "plugins": sections.plugins,
}


def main() -> None:
    """Measure, print, write."""
    options = arguments()
    plan = sections.QUICK if options.quick else sections.FULL
    record = Record(settings=plan.told())
    with tempfile.TemporaryDirectory() as folder:
        contenders = Contenders(
            options.model or default_folder(), Path(folder), record, openvino=options.openvino
        )
        with contenders:
            for name in options.only:
                try:
                    SECTIONS[name](contenders, plan, record)
                except AbsentError as error:  # without glmkit itself a section has no sense
                    record.absent[name] = str(error)
            record.versions = contenders.versions()
    for name, why in record.absent.items():
        print(f"absent: {name}: {why}")
    if options.out or not options.quick:
        written = record.write(options.out)
        print(f"\n{written.relative_to(ROOT) if written.is_relative_to(ROOT) else written}")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="about a minute; writes no file")
    parser.add_argument("--only", type=_names, default=list(SECTIONS), help="sections, by commas")
    parser.add_argument("--model", type=Path, help="folder; default: the embedded one")
    parser.add_argument(
        "--openvino",
        metavar="PYTHON",
        default=sys.executable,
        help="interpreter that has openvino-genai; default: this one",
    )
    parser.add_argument("--out", type=Path, help="write the figures here")
    return parser.parse_args()


def _names(given: str) -> list[str]:
    names = given.split(",")
    if not set(names) <= set(SECTIONS):
        raise argparse.ArgumentTypeError(f"sections are {', '.join(SECTIONS)}; got {given!r}")
    return names


if __name__ == "__main__":
    main()
