"""DataFrames in, DataFrames out."""

import numpy as np
import pytest

import lowrank_sp as lr
from lowrank_sp.frames import as_array, is_frame

pd = pytest.importorskip("pandas")


def table(dtype="float64", seed=0):
    """A complete table of rank one with labels, and the same with unknown entries."""
    rng = np.random.default_rng(seed)
    full = pd.DataFrame(
        np.outer(rng.uniform(1, 2, 12), rng.uniform(1, 2, 8)).astype(dtype),
        index=pd.date_range("2024-01-01", periods=12),
        columns=[f"station {k}" for k in range(8)],
    )
    return full, full.mask(rng.random(full.shape) < 0.3)


@pytest.mark.parametrize("dtype", ["float64", "float32", "Float64", "Float32"])
def test_the_table_comes_back_filled(dtype):
    full, holes = table(dtype.lower())
    filled = lr.fill(holes.astype(dtype), lr.complete(holes.astype(dtype), rank=1))
    assert filled.index.equals(full.index)
    assert filled.columns.equals(full.columns)
    assert not filled.isna().any().any()
    assert np.allclose(filled.to_numpy(float), full, rtol=1e-3 if "32" in dtype else 1e-8)
    known = holes.notna().to_numpy()
    assert np.array_equal(filled.to_numpy(float)[known], holes.to_numpy(float)[known])


def test_the_given_table_is_left_alone():
    _, holes = table()
    copy = holes.copy()
    lr.fill(holes, lr.complete(holes, rank=1))
    pd.testing.assert_frame_equal(holes, copy)


def test_a_table_is_the_array_of_its_numbers():
    _, holes = table()
    a, b = lr.MatrixCompletion.from_frame(holes), lr.MatrixCompletion.from_array(holes.to_numpy())
    assert np.array_equal(a.data, b.data)
    assert np.array_equal(a.pattern.cols, b.pattern.cols)
    assert a.data.dtype == float
    assert lr.MatrixCompletion.from_frame(holes.astype("float32")).data.dtype == np.float32


def test_kinds_of_columns():
    """Integers and NA count; a column without unknown entries keeps its type, also under a repeated label."""
    _, holes = table()
    holes = holes.iloc[:, :5].copy()
    holes.insert(0, "count", np.arange(12))
    holes["level"] = pd.array([1, None, *range(3, 13)], dtype="Int64")
    holes.columns = ["count", "a", "a", "b", "c", "d", "level"]
    assert np.isnan(as_array(holes)[1, -1])
    filled = lr.fill(holes, lr.complete(holes, rank=2))
    assert filled["count"].dtype == holes["count"].dtype
    assert filled["level"].dtype == float
    assert filled["level"].tolist()[2:] == list(range(3, 13))
    assert not filled.isna().any().any()


def test_weights_of_a_table():
    _, holes = table()
    weights = pd.DataFrame(np.random.default_rng(1).uniform(1, 2, holes.shape))
    problem = lr.MatrixCompletion.from_frame(holes, weights=weights)
    known = holes.notna().to_numpy()
    assert np.allclose(problem.roots**2, weights.to_numpy()[known])


def test_arrays_and_sparse_matrices_are_filled_too():
    scipy_sparse, torch = pytest.importorskip("scipy.sparse"), pytest.importorskip("torch")
    full, holes = table()
    truth, array = full.to_numpy(), holes.to_numpy(copy=True)
    known = ~np.isnan(array)
    rows, cols = known.nonzero()
    sparse = scipy_sparse.coo_array((array[known], (rows, cols)), shape=array.shape)
    places, known_values = torch.as_tensor(np.stack((rows, cols))), torch.as_tensor(array[known])
    tensor = torch.sparse_coo_tensor(places, known_values, array.shape, check_invariants=True)
    for matrix in (array, sparse, sparse.tocsc(), torch.as_tensor(array), tensor):
        filled = lr.fill(matrix, lr.complete(matrix, rank=1))
        assert np.allclose(filled, truth)
        assert np.array_equal(np.asarray(filled)[known], array[known])
        assert isinstance(filled, torch.Tensor) == isinstance(matrix, torch.Tensor)
    assert np.array_equal(lr.fill(truth, lr.BurerMonteiro(np.ones((12, 1)), np.ones((8, 1)))), truth)


def test_the_mask_of_an_array_says_what_is_filled():
    full, holes = table()
    masked = np.ma.masked_invalid(holes.to_numpy(copy=True))
    masked.data[masked.mask] = -1.0
    assert np.allclose(lr.fill(masked, lr.complete(holes, rank=1)), full)


BAD = {
    "a column of text": (lambda t: lr.complete(t.assign(name="x"), rank=1), TypeError, r"\['name'\] are not"),
    "a column of dates": (
        lambda t: lr.complete(t.assign(when=pd.Timestamp("2024-01-01")), rank=1),
        TypeError,
        r"\['when'\] are not",
    ),
    "complex columns": (lambda t: lr.complete(t.astype(complex), rank=1), TypeError, "must have numeric columns"),
    "only NaN": (lambda t: lr.complete(t * np.nan, rank=1), ValueError, "no observed entries"),
    "infinite entries": (lambda t: lr.complete(t.mask(t > 1, np.inf), rank=1), ValueError, "NaN or infinite"),
    "an empty table": (lambda t: lr.complete(t.iloc[:0], rank=1), ValueError, "no observed entries"),
    "a series": (lambda t: lr.complete(t.iloc[:, 0], rank=1), ValueError, "two axes"),
    "no frame": (lambda t: lr.MatrixCompletion.from_frame(t.to_numpy()), TypeError, "must be a pandas DataFrame"),
    "weights of another shape": (
        lambda t: lr.MatrixCompletion.from_frame(t, weights=np.ones((2, 2))),
        ValueError,
        r"weights must have shape \(12, 8\)",
    ),
    "a result of another shape": (
        lambda t: lr.fill(t.iloc[1:], lr.complete(t, rank=1)),
        ValueError,
        r"matrix has shape \(11, 8\)",
    ),
    "no result": (lambda t: lr.fill(t, t), TypeError, "result must be"),
    "a separation": (lambda t: lr.fill(t, lr.robust_pca(table()[0], rank=1)), TypeError, "of a Separation give its"),
    "a batch": (
        lambda t: lr.fill(t, lr.complete(t, rank=1).point.map(lambda a: np.stack([a, a]))),
        ValueError,
        r"got batch axes \(2,\)",
    ),
    "an array with the factors of a tensor": (
        lambda t: lr.fill(t.to_numpy(), lr.complete(t, rank=1).point.map(pytest.importorskip("torch").as_tensor)),
        TypeError,
        "must share a library",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables(case):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call(table()[1])


def test_what_is_a_frame():
    assert is_frame(pd.DataFrame())
    assert not is_frame(pd.Series([1.0]))
    assert not is_frame(np.ones((2, 2)))
