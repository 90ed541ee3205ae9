"""The only room that touches disk: plain arrays in, an xarray-readable Zarr recording out, and back.

Knows the schema and the grid, takes numpy arrays only, and never imports torch, so a recording can be read and judged
where torch is not installed.
"""

from covshift.store.reader import open  # noqa: A004 - the public name is covshift.open
from covshift.store.writer import Writer

__all__ = ["Writer", "open"]
