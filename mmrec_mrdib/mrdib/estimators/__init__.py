"""Estimators of mutual information, one file each; `REGISTRY` names them for `mi_estimator`."""

REGISTRY: dict[str, str] = {
    "mine": "mmrec_mrdib.mrdib.estimators.mine:MINE",
    "club": "mmrec_mrdib.mrdib.estimators.club:CLUB",
    "infonce": "mmrec_mrdib.mrdib.estimators.infonce:InfoNCE",
    "gaussian": "mmrec_mrdib.mrdib.estimators.gaussian:GaussianMI",
}
