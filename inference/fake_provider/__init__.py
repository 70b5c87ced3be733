"""A fake OpenAI-compatible provider that ships with the product, for tests, benchmarks and users' trials.

    with FakeUpstream(latency_ms=20, faults={"http_500": 0.1}) as fake:
        client = OpenAI(base_url=fake.base_url, api_key="any")
        ...
        assert fake.totals()["completion_tokens"] == ...

`manage.py fake_upstream` runs it as a process. `FAULTS` lists the faults and what each bills.
"""

from inference.fake_provider.http import FakeCall
from inference.fake_provider.server import FakeUpstream
from inference.fake_provider.settings import FAULTS, LEAK_MARKER, OWNER

__all__ = ["FAULTS", "LEAK_MARKER", "OWNER", "FakeCall", "FakeUpstream"]
