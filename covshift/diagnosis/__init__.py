"""Labelled numbers in, findings out: thresholds, one rule per check, and the diagnosis that joins them.

Every verdict rests on a threshold of :mod:`covshift.diagnosis.thresholds`, which names its source. Nothing here
estimates (that is :mod:`covshift.analysis`), draws, or imports torch.
"""

from covshift.diagnosis.diagnosis import Diagnosis, Finding, diagnose

__all__ = ["Diagnosis", "Finding", "diagnose"]
