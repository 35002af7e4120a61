from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovit_deploy.bundle.manifest import TokenCount
from dovit_deploy.engines.tensorrt.stage import ONLY, STEPS, Bucket, bucket_for_count, buckets_from_profiles
from dovit_deploy.errors import InputError


def counts(minimum: int, maximum: int) -> TokenCount:
    return TokenCount(minimum=minimum, typical=(minimum + maximum) // 2, maximum=maximum)


def test_a_graph_of_one_size() -> None:
    assert buckets_from_profiles(()) == ONLY


def test_exact_profiles_are_buckets() -> None:
    profiles = (counts(128, 128), counts(256, 256), counts(1025, 1025))
    assert buckets_from_profiles(profiles) == (Bucket(128, 0), Bucket(256, 1), Bucket(1025, 2))


def test_of_two_profiles_the_narrower_runs_a_size() -> None:
    buckets = buckets_from_profiles((counts(1, 160), counts(40, 40), counts(41, 80)))
    assert {bucket.size: bucket.profile for bucket in buckets}[40] == 1
    assert {bucket.size: bucket.profile for bucket in buckets}[80] == 2
    assert {bucket.size: bucket.profile for bucket in buckets}[160] == 0


@settings(derandomize=True, deadline=None)
@given(minimum=st.integers(1, 50), more=st.integers(0, 3000), count=st.integers(1, 3050))
def test_a_range(minimum: int, more: int, count: int) -> None:
    """Every bucket lies within the profile, the largest count has one, and little runs in vain."""
    buckets = buckets_from_profiles((counts(minimum, minimum + more),))
    sizes = [bucket.size for bucket in buckets]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == minimum + more
    assert sizes[0] >= minimum
    assert len(sizes) <= STEPS
    if count > minimum + more:
        with pytest.raises(InputError, match=f"stage1: {count} tokens run, .* at most {minimum + more}"):
            bucket_for_count(buckets, count, graph="stage1")
        return
    bucket = bucket_for_count(buckets, count, graph="stage1")
    assert bucket.size >= count
    assert bucket.size - count <= max(minimum - count, -(-(minimum + more) // STEPS))
