"""Generate common/confide/proto from protos/, or with --check fail when the committed output is not current."""

import argparse
import filecmp
import importlib.resources
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "protos"
OUTPUT = ROOT / "common" / "confide" / "proto"


def generate(output: Path) -> None:
    """Write the generated package for every protos/confide/v1/*.proto below `output`."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    files = sorted(str(path.relative_to(SOURCES)) for path in SOURCES.glob("confide/v1/*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"-I{SOURCES}", f"-I{well_known}"]
        arguments += [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", *arguments, *files]) != 0:
            sys.exit("error: protoc failed")
        for made in sorted(Path(folder, "confide", "v1").iterdir()):
            # protoc names modules after the proto path; ours live in the package confide.proto.
            text = made.read_text().replace("from confide.v1 import", "from confide.proto import")
            if made.name.endswith("_grpc.py") and "class " not in text:
                continue
            (output / made.name).write_text(text)
    (output / "__init__.py").write_text('"""Generated from protos/ by tools/generate_protos.py. Do not edit."""\n')


def main() -> None:
    """Generate, or compare with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        OUTPUT.mkdir(parents=True, exist_ok=True)
        generate(OUTPUT)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        names = {path.name for path in Path(folder).iterdir()} | {path.name for path in OUTPUT.glob("*.py*")}
        _, different, missing = filecmp.cmpfiles(folder, OUTPUT, sorted(names), shallow=False)
    if different or missing:
        sys.exit(f"error: generated protobuf is not current: {sorted(different + missing)}. Run `make proto`.")


if __name__ == "__main__":
    main()
