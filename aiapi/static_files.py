"""How static files are named and served in production."""

from __future__ import annotations

from whitenoise.storage import CompressedManifestStaticFilesStorage

#: An import of one of the pages' own modules by another.
OWN_IMPORT = r'(?P<matched>import(?P<names>\s[^"]*?)from\s*"(?P<url>\./[^"]+)";)'


class HashedFiles(CompressedManifestStaticFilesStorage):  # type: ignore[misc]  # it has no types
    """Files under names with a hash, compressed; the pages' own modules import one another by those names.

    By their plain names a browser could run modules of two versions together for as long as it keeps them. Modules of
    other packages are left as they are: they import what their packages don't ship.
    """

    patterns = (
        *CompressedManifestStaticFilesStorage.patterns,
        ("site/*.js", ((OWN_IMPORT, 'import%(names)sfrom "%(url)s";'),)),
    )
