"""Hypothesis strategies for scores, rules and policies of every kind."""

from typing import Any, Final, get_args

from hypothesis import strategies as st

from serve_app.decide.policy import RouterPolicy, Rules
from serve_app.decide.scores import LEAF, Score, Tree
from serve_app.decide.signals import SIGNALS
from tests.support.tables import LABELS
from tune.objective import Shape

# Values that often fall on a tree's threshold, beside any others.
GRID: Final = st.sampled_from([0.0, 0.25, 0.5, 1.0])
SHARES: Final = GRID | st.floats(0, 1)
FINITE: Final = st.floats(-1e6, 1e6)
ROWS: Final = st.fixed_dictionaries(dict.fromkeys(SIGNALS, SHARES))
CLASSES: Final = st.dictionaries(st.sampled_from(LABELS), st.floats(-1, 1))
_FEATURES: Final = SIGNALS[:6]


@st.composite
def _trees(draw: Any, depth: int = 3) -> Tree:
    columns: dict[str, list[Any]] = {name: [] for name in Tree.model_fields}

    def grow(below: int) -> int:
        at = len(columns["value"])
        leaf = {"feature": LEAF, "threshold": 0.0, "left": LEAF, "right": LEAF}
        for name, value in {**leaf, "value": draw(FINITE)}.items():
            columns[name].append(value)
        if below and draw(st.booleans()):
            columns["feature"][at] = draw(st.integers(0, len(_FEATURES) - 1))
            columns["threshold"][at] = draw(SHARES)
            columns["left"][at] = grow(below - 1)
            columns["right"][at] = grow(below - 1)
        return at

    grow(depth)
    return Tree.model_validate(columns)


def _of_kind(kind: type[Any]) -> st.SearchStrategy[Any]:
    weights = st.dictionaries(st.sampled_from(SIGNALS), FINITE)
    given: dict[str, dict[str, st.SearchStrategy[Any]]] = {
        "weighted": {"weights": weights},
        "logistic": {"weights": weights, "intercept": FINITE, "classes": CLASSES},
        "boosted": {
            "features": st.permutations(_FEATURES).map(tuple),
            "trees": st.lists(_trees(), max_size=4).map(tuple),
            "rate": st.floats(0.01, 1),
            "base": FINITE,
        },
    }
    return st.builds(kind, **given.get(kind.model_fields["kind"].default, {}))


KINDS: Final = get_args(get_args(Score)[0])
SCORES: Final[st.SearchStrategy[Any]] = st.one_of([_of_kind(kind) for kind in KINDS])


@st.composite
def _rules(draw: Any) -> Rules:
    classes = draw(st.permutations(LABELS))
    kept, sent = sorted((draw(st.integers(0, len(LABELS))), draw(st.integers(0, len(LABELS)))))
    return Rules(
        never_escalate=tuple(classes[:kept]),
        always_escalate=tuple(classes[kept:sent]),
        escalation_words=draw(st.booleans()),
        max_distance=draw(st.none() | SHARES),
        max_words=draw(st.none() | st.integers(0, 60)),
    )


RULES: Final = st.just(Rules()) | _rules()
SHAPES: Final = st.builds(
    Shape, score=SCORES, class_margins=CLASSES, min_confidence=SHARES, rules=RULES
)
POLICIES: Final = st.builds(
    RouterPolicy,
    name=st.just("any"),
    score=SCORES,
    threshold=FINITE | st.floats(-1, 1),
    class_margins=CLASSES,
    min_confidence=SHARES,
    rules=RULES,
)
