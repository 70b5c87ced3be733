"""Storage of static files in production."""

from __future__ import annotations

from typing import Any

from whitenoise.compress import Compressor
from whitenoise.storage import CompressedManifestStaticFilesStorage

#: An import statement between the pages' own JavaScript modules.
OWN_IMPORT = r'(?P<matched>import(?P<names>\s[^"]*?)from\s*"(?P<url>\./[^"]+)";)'


class HashedFiles(CompressedManifestStaticFilesStorage):  # type: ignore[misc]  # it has no types
    """Compressed files with hashed names. The pages' own JavaScript modules import each other by the hashed names.

    With plain names, a browser could mix modules of two versions from its cache. Modules of other packages are not
    changed, because they import files that their packages don't ship.
    """

    patterns = (
        *CompressedManifestStaticFilesStorage.patterns,
        ("site/*.js", ((OWN_IMPORT, 'import%(names)sfrom "%(url)s";'),)),
    )

    def create_compressor(self, **options: Any) -> Compressor:
        """Don't compress source maps: they are half of all bytes, and only developers load them."""
        return Compressor(**{**options, "extensions": [*Compressor.SKIP_COMPRESS_EXTENSIONS, "map"]})
