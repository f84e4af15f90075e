"""The weighted sum of a row's experts, in the one order that no number of ranks changes.

Experts form fixed groups. Inside a group a row's terms are added in expert order, from zero, and
the groups along a binary tree of adjacent pairs (``reference.combine``). A rank holds an aligned
run of groups, so its sum is a node of the tree over all groups. Kernels that add here are compiled
without fusing products into sums: a fused sum would round differently from a term that is alone.

A row has few terms, so most of the tree adds zeros, which changes nothing. Here the terms stand in
expert order, and level by level each is added to its right neighbour where both belong to one node;
what was added becomes zero.
"""

import triton
from triton import language as tl

from moeray.kernels.launch import wide


@triton.jit
def tree_of_groups(  # type: ignore[no-untyped-def]
    outputs_ptr,
    experts_ptr,
    weights_ptr,
    rows,
    columns,
    some,
    N: tl.constexpr,
    first_group,
    GROUP_EXPERTS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """The sum [rows, columns] float32 over groups first_group to first_group + GROUPS - 1.

    Choice j of row r, of four, has the output of ``outputs_ptr`` at (4 r + j) N; experts and
    weights are [R, 4]. GROUPS is a power of two up to 8. Outputs of other groups' experts are not
    read. ``some`` [rows, columns] says what is there; experts and weights of every row of ``rows``
    are read.
    """
    slots = tl.arange(0, 4)
    choices = rows[:, None] * 4 + slots[None, :]
    ids = tl.load(experts_ptr + choices).to(tl.int32)
    weights = tl.load(weights_ptr + choices)
    place = tl.sum((ids[:, None, :] < ids[:, :, None]).to(tl.int32), 2)
    a, at_a = _term(
        0, outputs_ptr, choices, ids, weights, place, columns, some, N,
        first_group, GROUP_EXPERTS, GROUPS,
    )  # fmt: skip
    b, at_b = _term(
        1, outputs_ptr, choices, ids, weights, place, columns, some, N,
        first_group, GROUP_EXPERTS, GROUPS,
    )  # fmt: skip
    c, at_c = _term(
        2, outputs_ptr, choices, ids, weights, place, columns, some, N,
        first_group, GROUP_EXPERTS, GROUPS,
    )  # fmt: skip
    d, at_d = _term(
        3, outputs_ptr, choices, ids, weights, place, columns, some, N,
        first_group, GROUP_EXPERTS, GROUPS,
    )  # fmt: skip
    LEVELS: tl.constexpr = 1 + (GROUPS >= 2) + (GROUPS >= 4) + (GROUPS >= 8)
    for level in tl.static_range(LEVELS):
        a, b = _added(a, at_a >> level, b, at_b >> level)
        b, c = _added(b, at_b >> level, c, at_c >> level)
        c, d = _added(c, at_c >> level, d, at_d >> level)
    # The last level has one node: all has come to the last term.
    return d


@triton.jit
def _added(left, left_node, right, right_node):  # type: ignore[no-untyped-def]
    """Both terms, the left one added to the right one where their nodes [rows] are the same."""
    same = (left_node == right_node)[:, None]
    return tl.where(same, 0.0, left), tl.where(same, left + right, right)


@triton.jit
def _term(  # type: ignore[no-untyped-def]
    p: tl.constexpr,
    outputs_ptr,
    choices,
    ids,
    weights,
    place,
    columns,
    some,
    N: tl.constexpr,
    first_group,
    GROUP_EXPERTS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """The term [rows, columns] of the p-th expert of each row, and its group [rows] among the held.

    One that is not held counts as of the nearest group, and is zero.
    """
    here = place == p
    group = tl.sum(tl.where(here, ids, 0), 1) // GROUP_EXPERTS - first_group
    choice = tl.sum(tl.where(here, choices, 0), 1).to(tl.int64)
    weight = tl.sum(tl.where(here, weights, 0.0), 1)
    held = (group >= 0) & (group < GROUPS)
    places = outputs_ptr + choice[:, None] * N + columns[None, :]
    keep = held[:, None] & some
    value = wide(tl.load(places, mask=keep, other=0.0)).to(tl.float32)
    # From zero, so that no term is a negative zero.
    return weight[:, None] * value + 0.0, tl.minimum(tl.maximum(group, 0), GROUPS - 1)
