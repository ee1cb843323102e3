"""What may travel beside an update in a private run: nothing that depends on data.

>>> from confide.runs.specification import EXAMPLE, parse_toml
>>> section = '[privacy]\\nunit = "record"\\nepsilon = 8.0\\ndelta = 1e-5\\nclip = 1.0\\n'
>>> sorted(allowed_metrics(parse_toml(EXAMPLE + section))), len(allowed_metrics(parse_toml(EXAMPLE)))
([], 9)
"""

from confide.errors import FailureName, ProtocolFailure
from confide.runs.contribution import Contribution
from confide.runs.metrics import Metric
from confide.runs.specification import Specification


def allowed_metrics(specification: Specification) -> frozenset[Metric]:
    """What a node may report beside its update: everything without privacy, nothing with it, as nothing is noised."""
    return frozenset(Metric) if specification.privacy.unit == "none" else frozenset()


def check_unaccounted(specification: Specification, contribution: Contribution) -> None:
    """Raise ProtocolFailure METRIC_NOT_ALLOWED for a metric or weight that would leave a private run unaccounted.

    Guarantee: what passes carries, beside the update, constants only (under privacy: no metric, and the weight 1).
    """
    unit = specification.privacy.unit
    surplus = sorted(set(contribution.metrics) - allowed_metrics(specification))
    if surplus:
        raise ProtocolFailure(
            FailureName.METRIC_NOT_ALLOWED,
            f"{', '.join(surplus)} would be reported in a run that protects each {unit}; metrics are not noised, so "
            "none may leave",
        )
    if unit != "none" and contribution.weight != 1.0:
        raise ProtocolFailure(
            FailureName.METRIC_NOT_ALLOWED,
            f"the update would be weighted in a run that protects each {unit}; weights tell of the data, so all are 1",
        )
