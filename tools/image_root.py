"""Writes podidentity's root file system into a directory, for the Dockerfile: `image_root.py DIR`.

`tools/image.py` makes the same parts into layers. This program needs pip and mmdebstrap, and nothing of podidentity.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from imaging import roots

if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004  # the program and the directory
        raise SystemExit("image_root: name the directory to write; for example image_root.py build/root")
    directory = Path(sys.argv[1]).absolute()
    for part in roots.parts(Path(__file__).parents[1], directory):
        part.make(directory)
