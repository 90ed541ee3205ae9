"""Root attributes of a recording, whoever opened it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def attribute(attrs: Mapping[Any, Any], name: str, default: Any) -> Any:
    """A root attribute that has parts, a list or a mapping; ``default`` where there is none of that name.

    NetCDF has no such attributes: the export writes them as JSON.

    Examples
    --------
    >>> attribute({"warnings": '["a part is compiled"]'}, "warnings", []), attribute({}, "warnings", [])
    (['a part is compiled'], [])
    """
    value = attrs.get(name, default)
    return json.loads(value) if isinstance(value, str) else value
