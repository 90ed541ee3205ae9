"""The reference networks of the paper, and the two ways in which their weights start."""

from covshift.models.deep import depth_net
from covshift.models.initialization import (
    activation_members,
    glorot_uniform_,
    mean_square_gain,
    variance_preserving_,
)

__all__ = ["activation_members", "depth_net", "glorot_uniform_", "mean_square_gain", "variance_preserving_"]
