"""A release's edge in this process: a text -> why it would go where, without a service.

Nothing is sent, audited or counted. It is the user's own machine, so the probabilities are shown.
"""

from cluster.errors import DataError
from cluster.releases import Release
from serve_app.cascade.steps import decide_all, settle_edge
from serve_app.cascade.work import Work
from serve_app.decide.cost import Prices
from serve_app.decide.explain import Explanation, load_alternatives
from serve_app.decide.policy import policy_of
from serve_app.guard.prepare import prepare, redactor_of
from serve_app.model.golden import TierModel


def explain_locally(release: Release, text: str) -> Explanation:
    """Loads the release's edge model, and explains its decision about one raw text.

    Raises:
        BundleError: the edge's bundle is broken, or this CPU computes another artifact.
        DataError: the text has no visible character.
        ReleaseError: the policy or the alternatives cannot be used.
    """
    message = prepare(text, redactor_of(release.guard))
    if not message.text:
        raise DataError("The text has no visible character. Give one that has.")
    policy, alternatives = policy_of(release), load_alternatives(release.path)
    sha256 = release.manifest.edge_sha256
    model = TierModel.load(release.edge_path, sha256, 1, release.edge_artifact)
    work = Work(message)
    settle_edge([work], model.predict([message.text]), 0.0)
    decide_all([work], policy)
    prices = Prices.model_validate(release.prices)
    return work.explained(policy, prices, release.manifest.labels, alternatives)
