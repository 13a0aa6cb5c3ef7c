import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.histogram import Histogram, _bucket, _upper_end

DAY = 86_400_000_000_000
nanoseconds = st.integers(0, DAY)


@given(nanoseconds)
def test_a_value_lies_below_the_end_of_its_bucket_by_less_than_one_part_in_32(value: int) -> None:
    end = _upper_end(_bucket(value))
    assert value <= end < value + max(1, value / 31)


def test_the_buckets_follow_each_other_without_gap_and_overlap() -> None:
    ends = [_upper_end(bucket) for bucket in range(400)]
    assert all(_bucket(end) == bucket for bucket, end in enumerate(ends))
    assert all(_bucket(end + 1) == bucket + 1 for bucket, end in enumerate(ends))
    assert all(low < high for low, high in pairwise(ends))


@given(st.lists(nanoseconds, min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_is_that_of_the_sorted_values(values: list[int], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    assert exact <= histogram.quantile(share) <= exact * 33 / 32 + 1


def test_small_values_are_exact() -> None:
    histogram = Histogram()
    for value in range(1, 21):
        histogram.record(value)
    assert [histogram.quantile(share) for share in (0, 0.5, 0.95, 1)] == [1, 10, 19, 20]


def test_a_negative_time_counts_as_nothing_and_more_than_a_day_is_an_error() -> None:
    histogram = Histogram()
    histogram.record(-5)
    assert histogram.quantile(1) == 0
    with pytest.raises(IndexError):
        histogram.record(2 * DAY)


def test_json_pairs_restore_it_and_histograms_add_up() -> None:
    one, other = Histogram(), Histogram()
    one.record(1_000)
    other.record(5)
    other.record(2_000_000)
    copy = Histogram.from_pairs(other.pairs())
    assert (copy.count, copy.pairs()) == (2, other.pairs())
    one.add(copy)
    assert (one.count, one.quantile(0)) == (3, 5)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_from_0_to_1(share: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        Histogram().quantile(share)


def test_nothing_has_no_quantile() -> None:
    with pytest.raises(ValueError, match="nothing was recorded"):
        Histogram().quantile(0.5)
