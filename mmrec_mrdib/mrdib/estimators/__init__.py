"""Estimators of mutual information, one file each; `REGISTRY` names them for `mi_estimator`."""

REGISTRY: dict[str, str] = {
    "mine": "mmrec_mrdib.mrdib.estimators.mine:MINE",
}
