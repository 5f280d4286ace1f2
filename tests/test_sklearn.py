"""The imputer is an estimator as scikit-learn checks them, and predicts missing values of real tables well."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from lowrank_sp.sklearn import LowRankImputer


@parametrize_with_checks([LowRankImputer(), LowRankImputer(rank=1), LowRankImputer(rank=0, center=False, scale=False)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def low_rank_table(m=60, n=12, rank=2, missing=0.3, seed=0, dtype=float):
    rng = np.random.default_rng(seed)
    full = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n)) * rng.uniform(1, 100, n) + rng.uniform(
        -50, 50, n
    )
    return full.astype(dtype), np.where(rng.random((m, n)) < missing, np.nan, full).astype(dtype)


def holes(table, missing=0.2, seed=0):
    mask = np.random.default_rng(seed).random(table.shape) < missing
    return np.where(mask, np.nan, table), mask


def error(imputer, table, mask):
    """Root mean square over the removed values, columns in units of their standard deviation."""
    filled = imputer.fit_transform(np.where(mask, np.nan, table))
    spread = table.std(0) + (table.std(0) == 0)
    return float((((filled - table) / spread)[mask] ** 2).mean() ** 0.5)


def test_a_low_rank_table_is_recovered_also_in_new_rows():
    """With an intercept the model has one more direction than the rank says: the means are those of what is known."""
    full, table = low_rank_table(rank=1, missing=0.2)
    imputer = LowRankImputer(rank=2, ridge=0.0, max_iter=2000, tol=1e-12, random_state=0).fit(table[:50])
    assert np.allclose(imputer.transform(table[:50]), full[:50], rtol=1e-3, atol=1e-2)
    assert np.allclose(imputer.transform(table[50:]), full[50:], rtol=1e-3, atol=1e-2)


def test_known_values_stay_to_the_last_digit():
    _, table = low_rank_table()
    known = ~np.isnan(table)
    filled = LowRankImputer(random_state=0).fit_transform(table)
    assert np.array_equal(filled[known], table[known])
    assert np.isfinite(filled).all()


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_new_rows_are_ridge_regressions_on_the_components(ridge):
    _, table = low_rank_table()
    imputer = LowRankImputer(rank=3, ridge=ridge, random_state=0).fit(table)
    filled = imputer.transform(table)
    right = imputer.components_.T
    unit = np.mean([(right[~np.isnan(row)] ** 2).sum() for row in table]) / 3
    for row, out in zip(table, filled, strict=True):
        known = ~np.isnan(row)
        z = (row - imputer.mean_) / imputer.scale_
        model = Ridge(alpha=max(ridge * unit, 1e-12), fit_intercept=False, solver="svd").fit(right[known], z[known])
        expected = imputer.mean_ + imputer.scale_ * (right @ model.coef_)
        assert np.allclose(out[~known], expected[~known], rtol=1e-4, atol=1e-4)


def test_rank_zero_is_mean_imputation():
    _, table = low_rank_table()
    assert np.allclose(LowRankImputer(rank=0).fit_transform(table), SimpleImputer().fit_transform(table))


def test_auto_finds_structure_and_its_absence():
    _, table = low_rank_table(m=150, rank=3)
    table += 0.2 * np.nanstd(table, axis=0) * np.random.default_rng(2).standard_normal(table.shape)
    imputer = LowRankImputer(random_state=0).fit(table)
    assert 2 <= imputer.rank_ <= 5
    noise = np.random.default_rng(1).standard_normal((300, 8))
    assert LowRankImputer(random_state=0).fit(holes(noise)[0]).rank_ <= 1


@pytest.mark.parametrize("load", [load_diabetes, load_digits], ids=["diabetes", "digits"])
def test_real_tables(load):
    """At least 20 % below mean imputation, and close to, or better than, chained regressions."""
    table = load().data[:300]
    table = table[:, table.std(0) > 0][:, :30]
    _, mask = holes(table, 0.2)
    ours = error(LowRankImputer(random_state=0), table, mask)
    mean = error(SimpleImputer(), table, mask)
    chained = error(IterativeImputer(max_iter=20, tol=1e-1, random_state=0), table, mask)
    assert ours < 0.8 * mean
    assert ours < 1.25 * chained


def test_frames_and_names():
    pd = pytest.importorskip("pandas")
    _, table = low_rank_table()
    frame = pd.DataFrame(table, columns=[f"c{k}" for k in range(12)], index=range(100, 160))
    imputer = LowRankImputer(random_state=0).set_output(transform="pandas")
    filled = imputer.fit_transform(frame)
    assert list(filled.columns) == list(frame.columns) == list(imputer.get_feature_names_out())
    assert filled.index.equals(frame.index)
    assert np.allclose(filled, LowRankImputer(random_state=0).fit_transform(table))
    with pytest.raises(ValueError, match="feature names should match"):
        imputer.transform(frame.rename(columns={"c0": "other"}))


def test_pipelines_and_searches():
    X, y = load_diabetes(return_X_y=True)
    X, _ = holes(X[:200], 0.15)
    model = make_pipeline(LowRankImputer(rank=3, random_state=0), Ridge(alpha=0.1))
    assert cross_val_score(model, X, y[:200], cv=3).min() > 0.2
    search = GridSearchCV(model, {"lowrankimputer__rank": [0, 3]}, cv=3).fit(X, y[:200])
    assert set(search.best_params_) == {"lowrankimputer__rank"}


def test_single_precision_and_reproducibility():
    _, table = low_rank_table(dtype=np.float32)
    a, b = (LowRankImputer(random_state=3).fit(table) for _ in range(2))
    assert a.transform(table).dtype == a.components_.dtype == np.float32
    assert np.array_equal(a.components_, b.components_)
    assert vars(clone(a)).items() <= vars(a).items()


def test_odd_tables():
    _, table = low_rank_table()
    table[5] = np.nan  # a row without values gets the means
    table[:, 4] = 7.0  # a constant column stays
    imputer = LowRankImputer(rank=2, random_state=0)
    filled = imputer.fit_transform(table)
    assert np.allclose(filled[5], imputer.mean_)
    assert (filled[:, 4] == 7).all()
    table[:, 3] = np.nan
    with pytest.warns(UserWarning, match=r"columns \[3\] have no value; they are filled with 0"):
        filled = imputer.fit_transform(table)
    assert not filled[:, 3].any()
    assert np.allclose(LowRankImputer(rank=2, random_state=0).fit(filled).transform(filled), filled)


BAD = {
    "a rank that is too large": (
        {"rank": 13},
        ValueError,
        "rank=13 is too large for n_samples=60 and n_features=12; it may be 12",
    ),
    "a negative rank": ({"rank": -1}, ValueError, "'rank' parameter"),
    "another word": ({"rank": "best"}, ValueError, "'rank' parameter"),
    "a negative ridge": ({"ridge": -1.0}, ValueError, "'ridge' parameter"),
    "a share of one": ({"validation": 1.0}, ValueError, "'validation' parameter"),
    "no iterations": ({"max_iter": 0}, ValueError, "'max_iter' parameter"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_parameters(case):
    parameters, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        LowRankImputer(**parameters).fit(low_rank_table()[1])


def test_bad_tables():
    imputer = LowRankImputer(rank=1, random_state=0).fit(low_rank_table()[1])
    with pytest.raises(ValueError, match="12 features"):
        imputer.transform(np.ones((3, 11)))
    with pytest.raises(ValueError, match="infinity"):
        imputer.fit(np.array([[1.0, np.inf], [1.0, 2.0]]))
    with pytest.raises(ValueError, match="could not convert"):
        imputer.fit(np.array([["a", "b"], ["c", "d"]]))


@pytest.mark.parametrize(("dtype", "unit", "tolerance"), [("float64", 1e200, 1e-12), ("float32", 1e30, 1e-4)])
def test_units_do_not_matter(dtype, unit, tolerance):
    """Also where squares of the values leave the range of their type."""
    table = low_rank_table()[1]
    plain = LowRankImputer(rank=2, random_state=0).fit_transform(table)
    for factor in (unit, 1 / unit):
        filled = LowRankImputer(rank=2, random_state=0).fit_transform((table * factor).astype(dtype))
        assert np.allclose(filled.astype(float) / factor, plain, rtol=0, atol=tolerance * abs(plain).max())


def test_an_interrupt_ends_the_fit(monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("lowrank_sp.descent.AlternatingLeastSquares.step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        LowRankImputer(random_state=0).fit(low_rank_table()[1])
