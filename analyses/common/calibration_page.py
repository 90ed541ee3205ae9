"""A calibration in words and tables: Markdown for the terminal and for docs/concepts/calibration.md.

The page holds one marked block a section, which :func:`rewrite` replaces; everything outside the marks is prose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covshift.selfcheck.blind_spots import BLIND_SPOTS
from covshift.selfcheck.suite import DOSES, NONE

Row = dict[str, Any]


def blocks(result: dict[str, Any]) -> dict[str, str]:
    """Markdown by section, of the sections that ``result`` holds."""
    makers = {"faults": _faults, "controls": _controls, "nulls": _nulls, "power": _power, "tables": _tables}
    return {section: make(result[section]) for section, make in makers.items() if section in result}


def rewrite(page: Path, sections: dict[str, str]) -> None:
    """Put ``sections`` between their marks, ``<!-- calibration: NAME -->`` and ``<!-- end: NAME -->``.

    Raises
    ------
    SystemExit
        If the page has no such marks.
    """
    text = page.read_text()
    for name, block in sections.items():
        marks = re.compile(rf"(<!-- calibration: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
        if not marks.search(text):
            raise SystemExit(f"{page}: no marks <!-- calibration: {name} --> and <!-- end: {name} -->")
        text = marks.sub(lambda found, block=block: f"{found[1]}\n{block}\n\n{found[2]}", text)
    page.write_text(text)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _share(share: Row) -> str:
    if not share["runs"]:
        return "-"
    return f"{share['hits']}/{share['runs']} [{share['low']:.2f}, {share['high']:.2f}]"


def _claim(share: Row) -> str:
    return f"{_share(share)} = {share['share']:.3f}" if share["runs"] else "-"


def _given(meta: Row) -> str:
    return (
        f"{meta['set']} networks, seeds {meta['first_seed']} to {meta['first_seed'] + meta['seeds'] - 1}; "
        f"{meta['runs']} runs of {meta['seconds']:.1f} s CPU on average; code {meta['code']}."
    )


def _faults(found: Row) -> str:
    totals = found["totals"]
    head = ["#", "fault", NONE, *DOSES, "in its layer where the check spoke", "every layer named"]
    rows = [
        [
            row["number"],
            row["name"],
            *(_share(row[dose]) for dose in (NONE, *DOSES)),
            _share(row["localisation"]) if row["local"] else "whole run",
            _share(row["everywhere"]) if row["local"] else "whole run",
        ]
        for row in found["faults"]
    ]
    claims = _table(
        ["all faults", "runs", "target"],
        [
            *(
                [f"found, {dose} dose", _claim(totals["recall"][dose]), "0.9" if dose == "strong" else ""]
                for dose in DOSES
            ),
            ["twins of movements, nothing planted, found anyway", _claim(totals["recall"][NONE]), ""],
            ["in its layer where the check spoke, strong dose", _claim(totals["localisation_strong"]), "0.9"],
            ["false alarms: every layer named though the fault has a place", _claim(totals["everywhere"]), ""],
        ],
    )
    return "\n\n".join([_given(found["meta"]), claims, _table(head, rows), _blind_spots()])


def _blind_spots() -> str:
    rows = [[spot.number, spot.name, spot.why, spot.instead] for spot in BLIND_SPOTS]
    return "Not planted, because a passive record does not show it:\n\n" + _table(
        ["#", "fault", "why", "what finds it"], rows
    )


def _controls(found: Row) -> str:
    totals = found["totals"]
    undetermined = "-" if totals["undetermined"] is None else f"{totals['undetermined']:.3f}"
    claims = _table(
        ["healthy runs", "share", "target"],
        [
            ["controls with a bad finding", _claim(totals["controls_bad"]), "at most 0.05"],
            ["controls with anything to watch", _claim(totals["controls_watch"]), ""],
            ["layers of controls whose operating point is undetermined, mean", undetermined, "at most 0.20"],
            ["traps fallen into", _claim(totals["traps"]), ""],
        ],
    )
    rows = [
        [
            row["name"],
            _share(row["bad"]),
            _share(row["watch"]),
            "-" if row["undetermined"] is None else f"{row['undetermined']:.2f}",
            "; ".join(row["said"]) or "",
        ]
        for row in found["controls"]
    ]
    traps = [[row["number"], row["name"], *(_share(row[dose]) for dose in (NONE, *DOSES))] for row in found["traps"]]
    return "\n\n".join(
        [
            _given(found["meta"]),
            claims,
            _table(["control", "bad", "watch or bad", "undetermined", "what was bad"], rows),
            _table(["#", "trap: fallen into", NONE, *DOSES], traps),
        ]
    )


def _of(found: dict[str, Row], table: str) -> list[Row]:
    return [row for key, row in found.items() if key.split("|")[1] == table]


def _nulls(found: dict[str, Row]) -> str:
    trend = [
        [row["records"], row["phi"], f"{row['rejects']:.3f}", f"{row['declines']:.3f}", f"{row['ks']:.3f}"]
        for row in _of(found, "trend")
    ]
    relabelling = [
        [row["groups"], row["rho"], f"{row['rejects']:.3f}", f"{row['ks']:.3f}", f"{row['ks_p']:.2g}"]
        for row in _of(found, "relabelling")
    ]
    families = [
        [row["dependence"], *(f"{row[name]:.3f}" for name in ("raw", "holm", "bh"))] for row in _of(found, "families")
    ]
    frozen = _of(found, "frozen")[0]
    return "\n\n".join(
        [
            "Trend by batch means where there is none; a test that declines does not reject:",
            _table(["records", "AR(1)", "rejects", "declines", "KS distance of p from uniform"], trend),
            "Relabelling over 10 pairs of records of 32 examples of 8 elements:",
            _table(["groups", "correlation in an example", "rejects", "KS distance", "KS p"], relabelling),
            f"The same from tensors to p: {frozen['runs']} recorded networks with frozen weights, {frozen['tests']} "
            f"disjoint windows: rejects {frozen['rejects']:.3f}; p against uniform: KS distance {frozen['ks']:.3f}, "
            f"p = {frozen['ks_p']:.2f}.",
            "Any of 10 layers flagged where none moves:",
            _table(["dependence of layers", "unadjusted", "Holm", "Benjamini-Hochberg"], families),
        ]
    )


def _power(found: dict[str, Row]) -> str:
    shifts = sorted({row["shift"] for row in _of(found, "relabelling")})
    curves: dict[tuple[int, float], dict[float, float]] = {}
    for row in _of(found, "relabelling"):
        curves.setdefault((row["groups"], row["rho"]), {})[row["shift"]] = row["found"]
    relabelling = [[*who, *(f"{curve[moved]:.2f}" for moved in shifts)] for who, curve in curves.items()]
    drifts = _of(found, "drift")
    sizes = list(drifts[0]["stable"])
    verdicts = [
        [row["records"], row["phi"], *(f"{row['stable'][size]:.3f} / {row['drifting'][size]:.3f}" for size in sizes)]
        for row in drifts
    ]
    return "\n\n".join(
        [
            "Share of shifts found by relabelling (10 pairs, 32 examples of 8 elements), by shift in sd:",
            _table(["groups", "correlation in an example", *(str(moved) for moved in shifts)], relabelling),
            "Operating point: said STABLE / said DRIFTING (the rest: undetermined), noise of a record 0.05 sd, margin "
            "0.2 sd, by true drift over the window in sd:",
            _table(["records", "AR(1)", *sizes], verdicts),
        ]
    )


def _tables(found: dict[str, Row]) -> str:
    bound = [[f"{row['rate']:g}", *(f"{n:,}" for n in row["examples"].values())] for row in _of(found, "bound")]
    sizes = [
        [
            row["n"],
            *(f"{row[name]:.4f} ({row[f'{name}_formula']:.4f})" for name in ("w1", "smd", "log_var_ratio")),
            f"{row['js']:.4f}",
        ]
        for row in _of(found, "null sizes")
    ]
    floors = [
        [
            f"{row['examples']}, {row['positions']}, {row['rho']}",
            f"{row['w1']:.3f}",
            f"{row['floor']:.3f}",
            f"{row['c']:.5f}",
            f"{row['u_0.0']:.5f} +- {row['u_error']:.5f}",
            *(f"{row[f'u_{moved}']:.4f} ({row[f'true_{moved}']:.4f})" for moved in (0.1, 0.2)),
        ]
        for row in _of(found, "noise floor")
    ]
    grid = [
        [
            row["name"],
            *(" / ".join(f"{one[what]:+.3f}" for what in ("sd", "quantile", "w1")) for one in row["bits"].values()),
        ]
        for row in _of(found, "grid")
    ]
    slopes = [[row["name"], f"{row['slope']:+.3f}", f"{row['sd']:.3f}"] for row in _of(found, "depth slope")]
    derivatives = [
        [row["name"], _zeros(row["single"]), _zeros(row["mirrored"]), f"{row['mirrored']['smallest']:.4g}"]
        for row in _of(found, "derivatives")
    ]
    return "\n\n".join(
        [
            "Examples without firing that bound a rate at 95 %, by number of units tested together:",
            _table(["rate", "1", "64", "1,024", "100,000"], bound),
            "What distances read between two samples of n normal values where nothing differs (formula), in sd:",
            _table(["n", "mean W1", "sd of the mean difference", "sd of ln variance ratio", "mean JS, nats"], sizes),
            "Noise floor; N(0, 1) values, by examples, elements an example and their correlation; C is the squared "
            "distance, U the corrected one (its true value):",
            _table(["B, HW, rho", "W1", "floor of W1", "C", "U", "U at 0.1 sd", "U at 0.2 sd"], floors),
            "What the grid costs, by bits of the mantissa (3 is recorded): relative error of the binned sd / largest "
            "error of a quantile in sd / relative error of W1 for a shift of 0.1 sd. Reported sd are never binned:",
            _table(["distribution", "1", "2", "3", "4"], grid),
            "Slope of the gradient over 40 layers of width 64 at initialisation, decades a layer, positive where it "
            "shrinks towards the input, 10 seeds:",
            _table(["network", "slope", "sd"], slopes),
            "Where every derivative is exactly zero in float32, and the least largest derivative of the mirrored pair:",
            _table(["activation", "single", "mirrored", "min max"], derivatives),
        ]
    )


def _zeros(found: Row) -> str:
    zeros = ", ".join(found["zeros"]) or "nowhere"
    return f"{zeros}; NaN somewhere" if found["nans"] else zeros
