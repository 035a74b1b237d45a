"""Where a request's ids come from."""

import pytest

from hybridgraph.bench.prompts import RandomPrompts
from hybridgraph.errors import UserError


@pytest.mark.parametrize(("vocab_size", "special_ids"), [(3, (0, 1, 2)), (1, (0, 7)), (0, ())])
def test_a_vocabulary_without_an_id_for_a_prompt(vocab_size: int, special_ids: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=f"all of the vocabulary's {vocab_size} ids are special"):
        RandomPrompts(seed=0, vocab_size=vocab_size, special_ids=special_ids)
