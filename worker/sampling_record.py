"""What a request's sampling brings to every plan unchanged, packed once when the request comes.

Joining ready bytes costs a plan of 256 sequences less than reading their fields one by one.
"""

from typing import Final

import numpy as np

from moeray.worker.request import SamplingParams

SAMPLING_RECORD: Final = np.dtype(
    [
        ("seed", "<u8"),
        ("temperature", "<f4"),
        ("top_p", "<f4"),
        ("top_k", "<i4"),
        ("min_p", "<f4"),
        ("repetition_penalty", "<f4"),
        ("presence_penalty", "<f4"),
        ("frequency_penalty", "<f4"),
        ("top_logprobs", "<i4"),
        ("wants_logprobs", "?"),
    ]
)
"""Fields of plan.SampleRows."""


def sampling_record(sampling: SamplingParams) -> bytes:
    """One SAMPLING_RECORD."""
    record = np.zeros(1, SAMPLING_RECORD)
    for name in SAMPLING_RECORD.names or ():
        if name != "wants_logprobs":
            record[name] = getattr(sampling, name) or 0
    record["wants_logprobs"] = sampling.top_logprobs is not None
    return record.tobytes()
