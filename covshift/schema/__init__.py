"""What a recording is: groups, dimensions, coordinates, variables, units and version, held as data.

The writer creates arrays from :data:`GROUPS`, :func:`check` compares a recording with it, and the documentation
prints it, so the three cannot drift apart. This room imports numpy, xarray and the grid; it knows neither torch nor
any file format.
"""

from covshift.schema.attributes import attribute
from covshift.schema.checking import VERSION, check, check_version
from covshift.schema.groups import (
    EVALUATION_GROUPS,
    EXAMPLE_GROUPS,
    GRADIENT_SIGNALS,
    GROUPS,
    HISTOGRAMS,
    LAYERS,
    PARAMETERS,
    SCALARS,
    SIGNALS,
    STEP_COORDINATES,
    STREAMS,
    UNIT_SIGNALS,
    UNITS,
    VALUE_SIGNALS,
    Group,
    Mode,
    Source,
    Status,
    Variable,
    grid_of,
    group_of,
    paths,
)
from covshift.schema.rows import MODEL_INPUT, UNKNOWN_AXIS, Layer, Parameter, Row, SparseCounts, is_model_input

__all__ = [
    "EVALUATION_GROUPS",
    "EXAMPLE_GROUPS",
    "GRADIENT_SIGNALS",
    "GROUPS",
    "HISTOGRAMS",
    "LAYERS",
    "MODEL_INPUT",
    "PARAMETERS",
    "SCALARS",
    "SIGNALS",
    "STEP_COORDINATES",
    "STREAMS",
    "UNITS",
    "UNIT_SIGNALS",
    "UNKNOWN_AXIS",
    "VALUE_SIGNALS",
    "VERSION",
    "Group",
    "Layer",
    "Mode",
    "Parameter",
    "Row",
    "Source",
    "SparseCounts",
    "Status",
    "Variable",
    "attribute",
    "check",
    "check_version",
    "grid_of",
    "group_of",
    "is_model_input",
    "paths",
]
