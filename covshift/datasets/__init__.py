"""The data sets of the paper's experiments and of the demo, as tensors split once and for all."""

from covshift.datasets.cifar import cifar10
from covshift.datasets.fashion import fashion_mnist
from covshift.datasets.handwritten import digits
from covshift.datasets.split import ImageSplit, stratified_split

__all__ = ["ImageSplit", "cifar10", "digits", "fashion_mnist", "stratified_split"]
