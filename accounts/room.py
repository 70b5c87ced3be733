"""How much of Redis's memory answers may take, so that limits and records always have room beside them.

Cached answers, and those kept under Idempotency-Keys, may lie in the Redis that the limits need. They are stored only
while all that lies there takes less than a share of its `maxmemory`.
"""

from __future__ import annotations

from pathlib import Path

#: Shares of maxmemory. Cached answers yield to kept ones: to lose a kept one can cost a caller, not only time.
CACHED_SHARE, KEPT_SHARE = 0.5, 0.75

#: Lua to put in front of a script that stores answers: it defines room(share).
ROOM = Path(__file__).with_name("room.lua").read_text()
