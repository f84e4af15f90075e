"""Block hashes: one for each whole block, of everything up to its end."""

from hypothesis import given
from hypothesis import strategies as st

from moeray.vocabulary.block_hash import HASH_BYTES, block_hashes, next_hash, root_hash

TOKENS = st.lists(st.integers(0, 201_087), max_size=40)


@given(TOKENS, st.integers(1, 8))
def test_whole_blocks_only_and_chained(tokens: list[int], block_tokens: int) -> None:
    hashes = block_hashes(tokens, block_tokens)
    assert len(hashes) == len(tokens) // block_tokens
    parent = root_hash()
    for index, found in enumerate(hashes):
        parent = next_hash(parent, tokens[index * block_tokens : (index + 1) * block_tokens])
        assert found == parent and len(found) == HASH_BYTES


@given(TOKENS, st.data())
def test_a_hash_stands_for_everything_before_it(tokens: list[int], data: st.DataObject) -> None:
    tokens = tokens or [1]
    where = data.draw(st.integers(0, len(tokens) - 1))
    other = [*tokens]
    other[where] = (other[where] + 1) % 201_088
    mine, theirs = block_hashes(tokens, 2), block_hashes(other, 2)
    assert mine[: where // 2] == theirs[: where // 2]
    assert not set(mine[where // 2 :]) & set(theirs[where // 2 :])


def test_salts_keep_prefixes_apart() -> None:
    assert not set(block_hashes(range(32), 16, "a")) & set(block_hashes(range(32), 16, "b"))


def test_known_answer() -> None:
    # Gateways and engines of one version must agree, whatever machine they are on.
    assert block_hashes([1, 2, 201_087], 3)[0].hex() == "798530ce9290405b85a85e5c7a7260c2"
