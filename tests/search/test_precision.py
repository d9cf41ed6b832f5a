"""The search trains in fp32 or bf16, never in fp16, for which it has no scaler."""

import pytest

from dnas.config import parse_config
from dnas.errors import UserError
from dnas.search import SearchConfig


def test_fp16_is_refused_by_name():
    with pytest.raises(UserError, match="precision: given \"fp16\", expected 'auto', 'fp32' or 'bf16'"):
        parse_config(SearchConfig, {"precision": "fp16"}, "search")
