"""
Generates gen/ from the contracts; with --check only says whether gen/ is current.

Writes three things: Python messages and gRPC stubs (grpcio-tools), their type
stubs (mypy-protobuf) and gen/finity.binpb, the descriptor set with comments that
the gateway, buf and the docs read. buf.validate comes out of the installed
protovalidate wheel, google.api out of googleapis-common-protos: nothing is vendored.
"""

import argparse
import filecmp
import re
import shutil
import sys
import sysconfig
import tempfile
from importlib.resources import files
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GEN = ROOT / "gen"
WELL_KNOWN = str(files("grpc_tools") / "_proto")
COMMON = sysconfig.get_path("purelib")
SCRIPTS = sysconfig.get_path("scripts")
VALIDATE = "buf/validate/validate.proto"
SERVICE = re.compile(r"^service ", re.MULTILINE)


def run_protoc(*arguments: str) -> None:
    code = protoc.main(["protoc", *arguments])
    if code:
        raise SystemExit(f"protoc failed with exit code {code}; its message is above.")


def write_imports(target: Path) -> None:
    """Writes a descriptor set of every imported file that is not ours."""
    google = target.with_name("google.binpb")
    run_protoc(
        f"-I{WELL_KNOWN}",
        f"-I{COMMON}",
        "--include_imports",
        f"--descriptor_set_out={google}",
        "google/api/annotations.proto",
        "google/api/httpbody.proto",
        "google/rpc/error_details.proto",
        "google/rpc/status.proto",
        "google/protobuf/timestamp.proto",
        "google/protobuf/duration.proto",
        "google/protobuf/field_mask.proto",
        "google/protobuf/struct.proto",
    )
    imports = descriptor_pb2.FileDescriptorSet.FromString(google.read_bytes())
    validate = validate_pb._DESC.proto.to_binary()
    imports.file.append(descriptor_pb2.FileDescriptorProto.FromString(validate))
    target.write_bytes(imports.SerializeToString(deterministic=True))
    google.unlink()


def generate(out: Path) -> None:
    """Writes the whole of gen/ into `out`."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        imports = Path(scratch) / "imports.binpb"
        write_imports(imports)
        common = (f"--descriptor_set_in={imports}", f"-I{PROTOS}")
        # protoc compiles files of the tree or files of a descriptor set, never
        # both in one run: the set is widened by ours, then everything is read from it.
        ours = out / "finity.binpb"
        with_google = [*sources, "google/rpc/error_details.proto", "google/rpc/status.proto"]
        run_protoc(
            f"-I{PROTOS}",
            f"--descriptor_set_in={imports}",
            "--include_imports",
            "--include_source_info",
            f"--descriptor_set_out={ours}",
            *with_google,
        )
        run_protoc(
            *common,
            f"--plugin=protoc-gen-mypy={SCRIPTS}/protoc-gen-mypy",
            f"--python_out={out}",
            f"--mypy_out=quiet:{out}",
            *sources,
            VALIDATE,
        )
        run_protoc(
            *common,
            f"--plugin=protoc-gen-mypy_grpc={SCRIPTS}/protoc-gen-mypy_grpc",
            f"--grpc_python_out={out}",
            f"--mypy_grpc_out=quiet,only_async:{out}",
            *[source for source in sources if SERVICE.search((PROTOS / source).read_text())],
        )


def differences(left: Path, right: Path) -> list[str]:
    """Names every file that is missing from or differs in either tree."""

    def tree(root: Path) -> set[Path]:
        return {
            path.relative_to(root)
            for path in root.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    names = tree(left) | tree(right)
    return sorted(
        str(name)
        for name in names
        if not (left / name).is_file()
        or not (right / name).is_file()
        or not filecmp.cmp(left / name, right / name, shallow=False)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / "gen"
        fresh.mkdir()
        generate(fresh)
        if arguments.check:
            stale = differences(fresh, GEN)
            if stale:
                sys.exit(f"gen/ is not what the protos say; run `make proto`: {', '.join(stale)}")
            return
        shutil.rmtree(GEN, ignore_errors=True)
        shutil.copytree(fresh, GEN)


if __name__ == "__main__":
    main()
