"""A process's metrics as Prometheus reads them: over HTTP, parsed by its own parser."""

import urllib.error
import urllib.request

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from .hang import HANG_S

Families = dict[str, Metric]


def fetch(address: str, path: str) -> tuple[int, str]:
    """The status and the body of a page."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=HANG_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def scrape(address: str) -> Families:
    """All metric families by name; counters without ``_total``."""
    status, text = fetch(address, "/metrics")
    assert status == 200
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families: Families, sample: str, **labels: str) -> float:
    """The value of the one sample of that name with these labels, whatever others it has."""
    found = [
        each.value
        for family in families.values()
        for each in family.samples
        if each.name == sample and labels.items() <= each.labels.items()
    ]
    assert len(found) == 1, f"{sample} {labels}: {len(found)} samples"
    return found[0]
