"""Storage of static files in production."""

from __future__ import annotations

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
