"""Layer names that fit where they stand and still tell layers apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def elide(name: str, width: int) -> str:
    """``name`` in at most ``width`` characters, the middle replaced by an ellipsis.

    Line breaks become spaces, and what cannot be printed a replacement character.

    Examples
    --------
    >>> elide("features.block12.conv_depthwise.norm", 17)
    'features…ise.norm'
    """
    flat = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(name.split()))
    if len(flat) <= width:
        return flat
    tail = width // 2
    return f"{flat[: width - tail - 1]}…{flat[-tail:]}"


def short_names(names: Iterable[object], *, width: int = 24) -> list[str]:
    """Layer names that fit in about ``width`` characters and stay distinct.

    Names that are too long lose the dotted prefix they all share; what is still too long is elided in the middle. Where
    that makes names equal, the words between dots are cut short instead, since numbers tell layers apart; names that
    are equal even so are told apart by their position.

    Examples
    --------
    >>> short_names(["encoder.layers.0.attention", "encoder.layers.1.attention"], width=16)
    ['0.attention', '1.attention']
    >>> short_names(["stages.0.blocks.7.convolution.weight", "stages.0.blocks.8.convolution.weight", "head"], width=24)
    ['stag.0.bloc.7.conv.weig', 'stag.0.bloc.8.conv.weig', 'head']
    """
    kept = [str(name) for name in names]
    if len(kept) > 1 and max(map(len, kept)) > width:
        kept = _without_shared_parents(kept)
    short = [elide(name, width) for name in kept]
    if len(set(short)) < len(set(kept)):
        short = [_cut(name, width) for name in kept]
    seen = Counter(short)
    return [f"{position}·{name}" if seen[name] > 1 else name for position, name in enumerate(short)]


def _cut(name: str, width: int) -> str:
    """``name`` with as much of its words between dots as fits; its numbers stay whole."""
    parts = name.split(".")
    for letters in range(max(map(len, parts)), 0, -1):
        shorter = ".".join(part if part.isdigit() else part[:letters] for part in parts)
        if len(shorter) <= width:
            return elide(shorter, width)
    return elide(name, width)


def _without_shared_parents(names: list[str]) -> list[str]:
    """Dotted names without the leading parts that all have; the last part always stays."""
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(part) > shared + 1 for part in parts) and len({part[shared] for part in parts}) == 1:
        shared += 1
    return [".".join(part[shared:]) for part in parts]
