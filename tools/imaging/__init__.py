"""What the images are made of; `tools/image.py` makes them, on a developer's machine and in the Dockerfile alike.

`debian` gives the system, `python` the packages and podidentity itself, `lab` what the sample application and the lab's
tools have besides. Each part is a directory that becomes one layer; nothing is run in it, so no root is needed.
"""
