"""ARM templates: the language of their expressions (`expressions`, `functions`), and what they deploy (`planning`).

Nothing here knows of requests or of the lab's state: a template and its parameters go in, resources in order come out.
"""
