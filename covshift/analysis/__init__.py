"""Recording in, labelled numbers out: the estimators of the analysis wing.

Every function takes an ``xarray.DataTree`` with the groups of :mod:`covshift.schema` and returns xarray objects whose
dimensions say what they hold. Nothing here judges (that is :mod:`covshift.diagnosis`), draws, or imports torch.
"""
