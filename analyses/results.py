"""The results pages: docs/results from the summaries of all runs, with no number typed by hand.

    python analyses/results.py --collect runs/paper
    python analyses/results.py --collect runs/paper --judge-again

``--collect`` first copies the summaries of finished and stopped runs (no smoke runs) into docs/results/data;
``--judge-again`` before that makes anew what they keep of their recordings, by the covshift of today. The same
summaries give the same pages, byte for byte.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import covshift
from common import figures, pages
from common.claims import JUDGES, Judgement
from common.data import TRAINING_IMAGES
from common.evidence import evidence
from common.files import read_json, write_json
from common.jobs import RECORDING, SUMMARY, commit, write_summary
from common.summaries import Summaries

RESULTS = Path(__file__).parent.parent / "docs" / "results"
MOST_BYTES = 10_000_000
"""That all summaries together may have."""


def collect(runs: Path, data: Path, *, smoke: bool) -> int:
    """Copy the summaries of runs, smoke runs only if asked to; returns how many."""
    copied = 0
    for path in sorted(runs.glob(f"*/{SUMMARY}")):
        summary = read_json(path)
        if summary is None or (summary["preset"].startswith("smoke") and not smoke):
            continue
        target = data / path.parent.name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / SUMMARY)
        copied += 1
    return copied


def judge_again(runs: Path) -> int:
    """Judge the recordings of runs anew and rewrite what their summaries keep of them; returns how many."""
    judged = 0
    for path in sorted(runs.glob(f"*/{SUMMARY}")):
        recording = path.parent / RECORDING
        summary = read_json(path)
        if summary is None or not recording.exists():
            continue
        found = evidence(covshift.open(recording), distinct_examples=_distinct_examples(summary))
        write_summary(path.parent, summary | found | {"judged_by": f"covshift {covshift.__version__} at {commit()}"})
        judged += 1
    return judged


def _distinct_examples(summary: dict[str, Any]) -> int:
    """Training images that the batches of a run were drawn from; a step is timed on one batch."""
    if summary["experiment"] == "step_time":
        return int(summary["plan"]["batch_size"])
    return int(summary["plan"]["train_examples"] or TRAINING_IMAGES[summary["data"]["name"]])


def write_pages(data: Path, out: Path) -> list[Judgement]:
    """Write all pages from the summaries under ``data``; returns the verdicts.

    Raises
    ------
    ValueError
        If the summaries are larger than the repository is to hold, or runs of one group were made by different plans.
    """
    size = sum(path.stat().st_size for path in data.glob(f"*/{SUMMARY}"))
    if size > MOST_BYTES:
        raise ValueError(f"{data}: summaries of {size:,} bytes, at most {MOST_BYTES:,} are to be in the repository")
    summaries = Summaries.of(data)
    summaries.same_plans()
    judgements = [judge(summaries) for judge in JUDGES.values()]
    for folder in ("claims", "evidence", "figures"):
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir(parents=True)
    drawn = figures.draw(summaries, out / "figures")
    for one in judgements:
        (out / "claims" / f"{one.claim}.md").write_text(pages.claim_page(one, summaries))
        evidence = {"claim": one.claim, "verdict": one.word, "criterion": one.criterion, "measure": one.measure}
        effects = [effect.to_dict() for effect in one.effects]
        write_json(out / "evidence" / f"{one.claim}.json", evidence | {"effects": effects})
    (out / "tables.md").write_text(pages.all_tables(summaries))
    (out / "units.md").write_text(pages.units(summaries))
    (out / "README.md").write_text(pages.overview(summaries, judgements, drawn))
    return judgements


def main(arguments: list[str] | None = None) -> int:
    """Collect, if asked to, and write the pages; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--collect", type=Path, help="folder of runs whose summaries to take over first")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the pages")
    parser.add_argument("--judge-again", action="store_true", help="judge the recordings of --collect anew first")
    parser.add_argument("--smoke", action="store_true", help="collect smoke runs, too, which mean nothing")
    options = parser.parse_args(arguments)
    data = options.out / "data"
    if options.judge_again:
        if options.collect is None:
            parser.error("--judge-again: which runs? Name their folder by --collect")
        print(f"{judge_again(options.collect)} recordings of {options.collect} judged again")
    if options.collect is not None:
        print(f"{collect(options.collect, data, smoke=options.smoke)} summaries from {options.collect}")
    for one in write_pages(data, options.out):
        print(f"{one.claim}: {one.word}")
    print(f"pages: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
