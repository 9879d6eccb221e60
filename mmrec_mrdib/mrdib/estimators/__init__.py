"""Estimators of mutual information, one file each; `registry.ESTIMATORS` names them for `mi_estimator`."""
