"""The pages of docs/results as text: an overview, all tables, and one page a claim, all numbers from summaries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from common import tables
from common.claims import Effect, Judgement
from common.measures import forward_fate
from common.published import ADDED, CLAIMS, EVERYWHERE
from common.summaries import LEFT_CHANCE, Summaries, Summary, best, unique

SOURCE = "arXiv 1712.02609"
_GENERATED = "<!-- Written by analyses/results.py from docs/results/data; change that, not this. -->\n"
_INTRODUCTION = (
    f"# The paper's claims, tried\n\nThe experiments of {SOURCE} run again under covshift. Verdicts hold for the data, "
    "sizes and steps below and no further.\n"
)
_WORDS = (
    'LK-: linked, f(z) = (g(z), g(-z)). "sqrt2": the single net with sqrt(2) times the units, the control with '
    'about as many parameters as the linked net. BN: ReLU after Batch Normalization. "keras": the Glorot weights '
    'that Keras starts with. An effect is "undetermined" where its interval leaves both answers open or too few '
    'runs were made, an "illustration" where no more were planned or the paper says nothing of such a net: it '
    "decides nothing. A claim is refuted by one refuted effect and supported where all that decide are.\n"
)
_STATISTICS = (
    '"Best of a run" is the statistic of the paper: the best test accuracy of all evaluations of a run, then the '
    'largest and the median over runs; "median of a run" takes the median of all evaluations instead. "Last" is the'
    " accuracy at the end of a run, on final_examples test images as said below or on all of them, while "
    'evaluations use the first test_examples: it may lie above the best. "95 % of further runs" is the interval in '
    "which that of a further seed would lie.\n"
)
_LEARNS = (
    "## Depth: who leaves chance, and when\n\nThe first evaluation of the curve with a test accuracy of "
    f"{LEFT_CHANCE} or more; chance is 0.1.\n"
)
_SILENT = (
    "## Depth: silent units\n\nUnits that gave nothing but zero on every watched training image at the end of the run "
    "(of a linked unit: all members). All layers: [units](units.md).\n"
)
_ORIGIN = (
    "Other tables: [tables](tables.md). Every number comes from [data](data/), one summary a run, by "
    "`python analyses/results.py`; recordings are not kept in the repository, the commands in analyses/ make them "
    "again.\n"
)
_FATES = {
    "vanishing": "the signal shrinks to less than a hundredth on its way through the net",
    "exploding": "the signal grows more than a hundredfold on its way through the net",
    "carried": "the signal arrives within a factor of a hundred",
    "not finite": "outputs were NaN or infinite",
}


def overview(summaries: Summaries, judgements: list[Judgement], figures: list[str]) -> str:
    """README.md: verdicts, table D, dead units, and what all of it rests on."""
    rows = [
        [
            f"[{one.claim}](claims/{one.claim}.md)",
            CLAIMS[one.claim],
            f"**{one.word}**",
            _counted(one),
            f"[evidence](evidence/{one.claim}.json)",
        ]
        for one in judgements
    ]
    depth = [table for table in tables.paper_tables() if table.letter == "D"]
    parts = [
        _GENERATED,
        _INTRODUCTION,
        tables.markdown(["claim", "says", "verdict", "effects", "numbers"], rows, numbers=False),
        _WORDS,
        "## Depth: accuracy\n",
        *(tables.accuracy_tables(table, summaries) for table in depth),
        _STATISTICS,
        _LEARNS,
        *_by_setting(summaries, tables.who_learns),
        _SILENT,
        *_by_setting(summaries, tables.dead_summary),
        *(f"![{figure}](figures/{figure})\n" for figure in figures),
        "## What this rests on\n",
        *provenance(summaries),
        _ORIGIN,
    ]
    return "\n".join(parts)


def all_tables(summaries: Summaries) -> str:
    """tables.md: every table of the paper beside ours, step times and inputs."""
    parts = [_GENERATED, f"# All tables of {SOURCE}, ours beside them\n"]
    parts += [tables.accuracy_tables(table, summaries) for table in tables.paper_tables()]
    parts += [f"### Step times\n\n{tables.step_times(summaries)}"]
    moved = summaries.where("covariate_shift").along("depth")
    parts += [f"### Whose movement, {shared}\n\n{tables.movement(runs)}" for shared, runs in moved]
    for title, experiment, axis in (("Inputs", "input_shift", "input"), ("Depths", "depth", "depth")):
        varied = summaries.where(experiment).along(axis)
        parts += [f"### {title}, {shared}\n\n{tables.over_axis(runs, axis)}" for shared, runs in varied]
    return "\n".join(parts)


def units(summaries: Summaries) -> str:
    """units.md: silent units of every layer of the depth net."""
    parts = [_GENERATED, "# Silent units of every layer of the depth net, medians over seeds\n"]
    return "\n".join(parts + _by_setting(summaries, tables.unit_table))


def _by_setting(summaries: Summaries, table: Callable[[Summaries], str]) -> list[str]:
    """A table of every setting of the depth net."""
    settings = summaries.where("depth").settings()
    return [f"### {name}\n\n{table(runs)}" for name, runs in settings] or [f"{tables.NOT_RUN}\n"]


def claim_page(judgement: Judgement, summaries: Summaries) -> str:
    """One claim: criterion, verdict, every effect with its interval, and the runs behind it."""
    rows = [
        [
            effect.what,
            _value(effect),
            tables.span(effect.number, 3),
            str(effect.number.runs),
            effect.word,
            effect.detail,
        ]
        for effect in judgement.effects
    ]
    runs = unique(name for effect in judgement.effects for name in effect.runs)
    headings = ["", "effect", "interval", "pairs or runs", "verdict", ""]
    parts = [
        _GENERATED,
        f"# {judgement.claim}: {CLAIMS[judgement.claim]}\n\n**{judgement.word}**: {_counted(judgement)}.\n",
        f"Criterion (ours, fixed before the runs): {judgement.criterion}\n",
        f"Effect: {judgement.measure}; intervals 95 % over seeds unless said otherwise.\n",
        tables.markdown(headings, rows, numbers=False) if rows else f"{tables.NOT_RUN}\n",
        *(_swish(summaries) if judgement.claim == "C2" else ()),
        f"## Runs\n\n{len(runs)} runs; numbers in [evidence](../evidence/{judgement.claim}.json).\n",
        *(f"- [{name}](../data/{name}/summary.json)" for name in runs),
        "",
    ]
    return "\n".join(parts)


def provenance(summaries: Summaries) -> Iterator[str]:
    """Data, scale, distance from the paper's protocol, hardware and commit of all runs."""
    if not len(summaries):
        yield f"No runs yet: everything above is {tables.NOT_RUN}.\n"
        return
    yield tables.markdown(["experiment", "runs", "seeds", "steps", "CPU hours"], _scales(summaries))
    for text in unique(
        f"{run['data']['name']}: {run['data']['description']} SHA-256 {run['data']['sha256']}." for run in summaries
    ):
        yield f"- Data {text}"
    for text, runs in _sorted_by(summaries, lambda run: _machine(run["machine"])):
        yield f"- {text}: {', '.join(unique(run['experiment'] for run in runs))}"
    for text, runs in _sorted_by(summaries, lambda run: run.get("judged_by", "")):
        if text:
            yield f"- Of {len(runs)} of {len(summaries)} runs the recording was judged again by {text}"
    for text in unique(_command(run) for run in summaries):
        yield f"- Made, at its commit, by `{text}`"
    yield "\nNot as in the paper:\n"
    yield f"- everywhere: {EVERYWHERE}"
    for text in unique(_distance(run) for run in summaries):
        yield f"- {text}"
    yield ""


def _sorted_by(summaries: Summaries, text: Callable[[Summary], str]) -> list[tuple[str, list[Summary]]]:
    """Runs by what a text says of them."""
    found: dict[str, list[Summary]] = {}
    for run in summaries:
        found.setdefault(text(run), []).append(run)
    return list(found.items())


def _scales(summaries: Summaries) -> Iterator[list[str]]:
    for experiment in unique(run["experiment"] for run in summaries):
        runs = summaries.where(experiment)
        steps = sorted({run["steps"] for run in runs})
        seeds = len({run["seed"] for run in runs})
        hours = sum(run["seconds"]["cpu"] for run in runs) / 3600
        shown = " to ".join(f"{step:,}" for step in dict.fromkeys((steps[0], steps[-1])))
        unfinished = sum(not run["complete"] for run in runs)
        yield [
            experiment,
            f"{len(runs)}" + (f", {unfinished} unfinished" if unfinished else ""),
            str(seeds),
            shown,
            f"{hours:.1f}",
        ]


def _machine(machine: dict[str, object]) -> str:
    return (
        f"covshift {machine['covshift']} at commit {machine['commit'] or 'unknown'}, torch {machine['torch']}, "
        f"{machine['device']} ({machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads a run)"
    )


def _command(run: dict[str, Any]) -> str:
    """The command that makes a run, and others like it; a preset whose numbers were overridden has them in its name."""
    preset, _, overridden = run["preset"].partition("-")
    command = f"python analyses/{run['experiment']}.py --data DIR --preset {preset}"
    if not overridden:
        return command
    plan = run["plan"]
    settings = {name: str(plan[name]) for name in ("steps", "dataset") if str(plan[name]) in overridden}
    settings |= {name: ",".join(map(str, values)) for name, values in plan["axes"].items()}
    settings |= {"variants": ",".join(plan["variants"]), "seeds": str(plan["seeds"])}
    return " ".join([command, *(f"--{name} {value}" for name, value in settings.items())])


def _distance(run: Summary) -> str:
    """What a run does otherwise than the paper, or than its protocol taken over for an experiment that it has not."""
    found = run["distance_from_paper"]
    there = "there" if run["experiment"] in ADDED else "paper"
    parts = [ADDED[run["experiment"]]] if run["experiment"] in ADDED else []
    if run["condition"].get("initialization") == "variance-preserving":
        parts.append("weights start variance-preserving (paper keras)")
    parts += [f"{name} {values['here']} ({there} {values['paper']})" for name, values in found.items()]
    return f"{run['experiment']}, {run['preset']}: {'; '.join(parts) or 'nothing'}"


def _counted(judgement: Judgement) -> str:
    words = [effect.word for effect in judgement.effects]
    return ", ".join(f"{words.count(word)} {word}" for word in unique(words)) or tables.NOT_RUN


def _value(effect: Effect) -> str:
    return f"{effect.number.value:.3f}" if math.isfinite(effect.number.value) else ""


def _swish(summaries: Summaries) -> Iterator[str]:
    """What becomes of linked Swish, whose failure the paper does not explain, from its records."""
    yield "## What happens to LK-Swish\n"
    rows = []
    for group in summaries.where("depth", "linked-silu").groups():
        for run in group:
            sizes = run["profiles"]["activation"]["rms"][0]
            gradients = run["profiles"]["activation_grad"]
            fate = forward_fate(run)
            rows.append([
                f"{group.setting}, seed {run['seed']}",
                _short(sizes[0]),
                _short(sizes[-1]),
                fate,
                _short(gradients["rms"][0][0]),
                _short(gradients["rms"][0][-1]),
                str(sum(run["units"]["silent"][-1])),
                f"{best(run):.3f}",
            ])  # fmt: skip
    headings = [
        "", "output rms, first layer", "last layer", "fate", "gradient rms, first layer", "last layer", "silent units",
        "best accuracy",
    ]  # fmt: skip
    yield tables.markdown(headings, rows) if rows else f"{tables.NOT_RUN}\n"
    if rows:
        named = "; ".join(f"{fate}: {words}" for fate, words in _FATES.items() if any(row[3] == fate for row in rows))
        yield f"Sizes are those of the first record. {named}.\n"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
