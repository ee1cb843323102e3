"""PDF files written by hand (ISO 32000-1): what a test says of sizes, fonts and outline is what stands in them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One line in Helvetica. size: in points."""

    text: str
    size: float = 12.0
    bold: bool = False


def pdf_of(*pages: list[Line], outline: str | None = None) -> bytes:
    """Pages of lines, and an outline of one title on the first page."""
    kids = " ".join(f"{5 + 2 * number} 0 R" for number in range(len(pages)))
    last = 5 + 2 * len(pages)
    objects = [
        f"<</Type/Catalog/Pages 2 0 R{f'/Outlines {last} 0 R' if outline else ''}>>",
        f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica-Bold>>",
    ]
    for lines in pages:
        shown = " ".join(map(_shown, lines))
        stream = f"BT 72 720 Td {shown} ET"
        own = f"/MediaBox[0 0 612 792]/Contents {len(objects) + 2} 0 R/Resources<</Font<</F1 3 0 R/F2 4 0 R>>>>"
        objects += [f"<</Type/Page/Parent 2 0 R{own}>>", f"<</Length {len(stream)}>>stream\n{stream}\nendstream"]
    if outline:
        first = last + 1
        objects.append(f"<</Type/Outlines/First {first} 0 R/Last {first} 0 R/Count 1>>")
        objects.append(f"<</Title({outline})/Parent {last} 0 R/Dest[5 0 R/Fit]>>")
    out, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    return f"{out}trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{start}\n%%EOF\n".encode()


def _shown(line: Line) -> str:
    leading = max(14.0, 1.2 * min(line.size, 40.0))
    return f"/{'F2' if line.bold else 'F1'} {line.size} Tf {leading} TL T* ({line.text}) Tj"
