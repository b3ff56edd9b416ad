"""Build the playable page: ``make play``, or ``python docs/play/build.py [folder]``.

The folder, ``build/play`` by default, then holds everything that the page needs, and any static
file server can serve it. Needs npm, and the network for its first run, to get onnxruntime-web.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import iclevr_diffusion

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STYLE = Path(iclevr_diffusion.__file__).parent / "reporting" / "style.css"
PAGE = ("*.html", "*.css", "*.js")


def build(folder: Path) -> None:
    """Write the page, the network as an ONNX graph, and onnxruntime-web.

    Args:
        folder: Replaced if it was built before.

    Raises:
        SystemExit: npm is missing or fails, or what it got is not what is pinned.
    """
    package = json.loads((HERE / "onnxruntime-web.json").read_text("utf-8"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".play-") as temporary:
        built = Path(temporary, "play")
        (built / "ort").mkdir(parents=True)
        unpack(npm_pack(package, Path(temporary)), package["files"], built / "ort")
        shutil.copy(HERE / "ort-license.txt", built / "ort" / "LICENSE.txt")
        export(built)
        for path in (STYLE, *(path for pattern in PAGE for path in HERE.glob(pattern))):
            shutil.copy(path, built)
        shutil.rmtree(folder, ignore_errors=True)
        built.rename(folder)


def npm_pack(package: dict[str, str], folder: Path) -> Path:
    """Download a package and check its integrity; return the archive."""
    name = f"{package['name']}@{package['version']}"
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("error: npm is missing; the playable page needs it to get onnxruntime-web")
    command = [npm, "pack", name, "--ignore-scripts", "--prefer-offline", "--silent"]
    result = subprocess.run(
        [*command, "--pack-destination", str(folder)], text=True, capture_output=True, check=False
    )
    if result.returncode != 0:
        raise SystemExit(f"error: npm pack {name} failed: {result.stderr.strip()}")
    (archive,) = folder.glob("*.tgz")
    algorithm, expected = package["integrity"].split("-", 1)
    digest = hashlib.new(algorithm, archive.read_bytes()).digest()
    if base64.b64encode(digest).decode() != expected:
        raise SystemExit(f"error: {name} is not the package that is pinned: its integrity differs")
    return archive


def unpack(archive: Path, names: list[str], folder: Path) -> None:
    """Copy files of a package's ``dist`` to a folder, without its subfolders."""
    with tarfile.open(archive) as package:
        for name in names:
            content = package.extractfile(f"package/dist/{name}")
            assert content is not None
            with content, (folder / name).open("wb") as file:
                shutil.copyfileobj(content, file)


def export(folder: Path) -> None:
    """Write ``model.onnx`` and ``model.json`` of the packaged weights."""
    command = [sys.executable, "-m", "iclevr_diffusion.export", "format=onnx", "dtype=float16"]
    result = subprocess.run([*command, f"out={folder}"], stdout=subprocess.DEVNULL, check=False)
    if result.returncode != 0:
        raise SystemExit(result.returncode)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "play"
    build(target.resolve())
    print(target)
