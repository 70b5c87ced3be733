"""The README's picture, as a program: `python -m tests.picture FILE`; bin/picture installs what it needs first."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

from playwright.sync_api import Page

from inference.fake_provider import FakeUpstream
from tests.servers import aiapi_server, browser

FILE = "docs/dashboard.webp"
WIDTH, HEIGHT = 1280, 1040
PASSWORD = "only for this picture"
#: Chromium writes WebP, a quarter of the size of a PNG.
TO_WEBP = """async (png) => {
    const image = new Image();
    image.src = `data:image/png;base64,${png}`;
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL("image/webp", 0.85).split(",")[1];
}"""


def picture(page: Page, base_url: str) -> bytes:
    """Log in, and return a picture of the dashboard as WebP."""
    page.goto(f"{base_url}/admin/login/?next=/admin/")
    page.fill("#id_username", "admin")
    page.fill("#id_password", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1_500)  # charts are drawn with an animation
    png = base64.b64encode(page.screenshot()).decode()
    page.goto("about:blank")
    return base64.b64decode(page.evaluate(TO_WEBP, png))


def main(file: Path) -> None:
    """Start a platform, make the sample data, and write the picture."""
    with FakeUpstream() as fake, browser() as chromium:
        settings = {"ADMIN_PASSWORD": PASSWORD, "OPENAI_BASE_URL": fake.base_url, "OPENAI_MODEL": "small"}
        with aiapi_server(settings) as service:
            service.manage("demo")
            page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            content = picture(page, service.base_url)
    file.write_bytes(content)
    sys.stdout.write(f"{file}: {len(content) // 1024} kB\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else FILE))
