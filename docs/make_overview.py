"""The picture of the README: three published figures of the studies on one sheet.

Run ``python docs/make_overview.py`` after ``python -m studies publish``.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "images" / "overview.png"
WIDTH, GAP = 1600, 24
ROWS = (
    ("hyperspectral/results/band.png",),
    ("nystrom_init/results/fig8.png", "gauge_solvers/results/equivariance.png"),
)


def strip(names: tuple[str, ...]) -> Image.Image:
    """Figures side by side, at one height, as wide as the sheet."""
    pictures = [Image.open(ROOT / "studies" / name).convert("RGB") for name in names]
    aspect = sum(p.width / p.height for p in pictures)
    height = round((WIDTH - GAP * (len(pictures) - 1)) / aspect)
    row = Image.new("RGB", (WIDTH, height), "white")
    left = 0
    for picture in pictures:
        width = round(picture.width / picture.height * height)
        row.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (left, 0))
        left += width + GAP
    return row


def main() -> None:
    """Stack the rows and save the sheet."""
    rows = [strip(names) for names in ROWS]
    sheet = Image.new("RGB", (WIDTH, sum(r.height for r in rows) + GAP * (len(rows) - 1)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + GAP
    TARGET.parent.mkdir(exist_ok=True)
    sheet.save(TARGET, optimize=True)
    print(f"wrote {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
