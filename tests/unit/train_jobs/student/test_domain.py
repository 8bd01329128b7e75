"""The distance is Mahalanobis' where rows are many, and still a number where they are few."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from train_jobs.student import domain
from train_jobs.student.domain import Domain, Floats, fit

WIDTH = 12
# Within classes, features vary a thousand times as much along one axis as along another.
SPREAD = np.geomspace(1, 1e-3, WIDTH)


def rows(count: int, classes: int = 3, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Features (count, WIDTH) around means a few units apart, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    means = np.random.default_rng(99).normal(0, 2, (classes, WIDTH))
    return means[labels] + random.normal(size=(count, WIDTH)) * np.sqrt(SPREAD), labels


def fitted(count: int = 3000) -> Domain:
    return fit(*rows(count), rows(1000, seed=1)[0])


def test_of_many_rows_it_is_the_distance_of_mahalanobis() -> None:
    """All directions but one are kept, so the covariance is nearly the rows' own."""
    x, labels = rows(60_000)
    asked, _ = rows(50, seed=2)
    means = np.stack([x[labels == label].mean(0) for label in range(3)])
    inverse = np.linalg.inv(np.cov((x - means[labels]).T))
    gaps = asked[:, None] - means
    expected = np.sqrt(np.einsum("ncw,wv,ncv->nc", gaps, inverse, gaps).min(1))
    found = fit(x, labels, rows(1000, seed=1)[0]).distances(asked)
    np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=0.02)


def test_one_is_as_far_as_the_furthest_percent_of_calibration() -> None:
    seen = fitted().distances(rows(1000, seed=1)[0])
    assert (seen > 1).sum() == 10
    fresh = fitted().distances(rows(10_000, seed=3)[0])
    assert 0.003 < (fresh > 1).mean() < 0.03


def test_a_step_counts_by_how_unusual_its_direction_is() -> None:
    """Along the axis of most spread a unit is one deviation, along that of least over thirty."""
    x, labels = rows(3000)
    mean = x[labels == 0].mean(0)
    wide, narrow = np.eye(WIDTH)[[0, -1]]
    at, along, across = fitted().distances(np.stack([mean, mean + wide, mean + narrow]))
    assert at == pytest.approx(0, abs=1e-6)
    assert across > 20 * along > 0


def test_a_stranger_is_further_than_any_class_has_messages() -> None:
    stranger = np.random.default_rng(5).normal(0, 2, (200, WIDTH))
    assert np.median(fitted().distances(stranger)) > 3


def test_the_same_rows_give_the_same_domain() -> None:
    one, two = fitted(), fitted()
    assert one.weight == two.weight
    assert all(
        np.array_equal(getattr(one, name), getattr(two, name))
        for name in ("directions", "classes", "offsets")
    )


def test_most_directions_share_a_sphere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leading two are measured, the other ten are taken to vary as much as each other."""
    monkeypatch.setattr(domain, "_DIRECTIONS", 2)
    made = fitted()
    assert made.directions.shape == (WIDTH, 2)
    x, labels = rows(3000)
    mean = x[labels == 0].mean(0)
    third, last = made.distances(mean + np.eye(WIDTH)[[2, -1]])
    assert third == pytest.approx(last, rel=0.1)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 30),
    st.integers(1, 6),
    st.integers(1, 10),
    st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    st.sampled_from(["apart", "same", "line"]),
)
def test_however_few_or_alike_the_rows_it_is_a_number(
    count: int, classes: int, calibration: int, size: float, shape: str
) -> None:
    """Singular covariances, classes of one row, every row the same: in 32 bits too."""
    x, labels = rows(count, classes)
    x = {"apart": x, "same": np.ones_like(x), "line": x[:, :1] * np.ones(WIDTH)}[shape] * size
    made = fit(x, labels, x[:calibration])
    asked = np.concatenate([x, np.eye(WIDTH), np.zeros((1, WIDTH))])
    assert np.isfinite(made.distances(asked)).all()
    for part in (made.weight, made.directions, made.classes, made.offsets):
        assert np.isfinite(np.asarray(part, np.float32)).all()


def test_a_class_without_rows_has_no_mean() -> None:
    """Labels 0, 1 and 2 of which 1 has none: as if there were only two."""
    x, labels = rows(300)
    kept = labels != 1
    some = fit(x[kept], labels[kept], x[kept])
    assert some.classes.shape == (WIDTH, 2)
    assert np.array_equal(some.classes, fit(x[kept], labels[kept] // 2, x[kept]).classes)
    assert some.distances(x[~kept]).min() > 1


@pytest.mark.parametrize(("train", "calibration"), [(0, 5), (5, 0)])
def test_no_rows_are_refused(train: int, calibration: int) -> None:
    x, labels = rows(5)
    with pytest.raises(ValueError, match=f"there are {train} and {calibration}"):
        fit(x[:train], labels[:train], x[:calibration])
