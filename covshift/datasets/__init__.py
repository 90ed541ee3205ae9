"""The data sets of the paper's experiments and of the demo, as tensors split once and for all."""

from covshift.datasets.handwritten import digits
from covshift.datasets.split import ImageSplit, stratified_split

__all__ = ["ImageSplit", "digits", "stratified_split"]
