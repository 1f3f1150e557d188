"""Renew the sample that the README shows: `make sample`, after `make report` and `make check`.

It copies the PDF of the report and takes a picture of the first screen of the check page (with
Chromium). Both carry a hash of the templates, which the tests compare with the present one."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, PngImagePlugin

from vitlab.report.settings import hash_templates

HERE = Path(__file__).parent
SIZE = (1280, 1240)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    reports = HERE.parent
    pages = sorted(reports.glob("checks/elpv-*/check.html"))
    report = reports / "_site" / "report.pdf"
    if not pages or not report.is_file():
        raise SystemExit("run `make report` and `make check` first")
    if not re.search(f"templates {hash_templates()}", pages[0].read_text(encoding="utf-8")):
        raise SystemExit(f"{pages[0]} was made with other templates; run `make check` again")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is installed")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "check.png"
        window = f"--window-size={SIZE[0]},{SIZE[1]}"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", window]
        command = [browser, *options, f"--screenshot={shot}", pages[0].resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        facts = PngImagePlugin.PngInfo()
        facts.add_text("templates", hash_templates())
        picture = Image.open(shot).convert("RGB").quantize(256)
        picture.save(HERE / "check.png", pnginfo=facts, optimize=True)
    shutil.copy(report, HERE / "report.pdf")


if __name__ == "__main__":
    main()
