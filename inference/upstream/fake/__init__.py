"""A fake OpenAI-compatible provider that ships with the product: for tests, benchmarks, and users' own trials.

    with FakeUpstream(latency_ms=20, faults={"http_500": 0.1}) as fake:
        client = OpenAI(base_url=fake.base_url, api_key="any")
        ...
        assert fake.totals()["completion_tokens"] == ...

`manage.py fake_upstream` runs the same as a process. `FAULTS` tells what can go wrong, and what is billed then.
"""

from .faults import FAULTS, LEAK_MARKER
from .ledger import Call, Received
from .server import FakeUpstream
from .settings import OWNER, FakeSettings

__all__ = ["FAULTS", "LEAK_MARKER", "OWNER", "Call", "FakeSettings", "FakeUpstream", "Received"]
