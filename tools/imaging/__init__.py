"""What the images are made of, on a developer's machine (`tools/image.py`) and in the Dockerfile alike.

`debian` gives the system, `python` the packages and podidentity itself, `roots` both as parts, `lab` what the sample
application and the lab's tools add. Each part is a directory that becomes one layer. Root's rights are not needed.
"""
