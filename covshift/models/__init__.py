"""The reference networks of the paper, and the ways in which their weights start."""

from covshift.models.convolutional import all_cnn, extended_cnn, width_net
from covshift.models.deep import depth_net
from covshift.models.initialization import (
    activation_members,
    glorot_normal_,
    glorot_uniform_,
    mean_square_gain,
    variance_preserving_,
)
from covshift.models.residual import resnet50

__all__ = [
    "activation_members",
    "all_cnn",
    "depth_net",
    "extended_cnn",
    "glorot_normal_",
    "glorot_uniform_",
    "mean_square_gain",
    "resnet50",
    "variance_preserving_",
    "width_net",
]
