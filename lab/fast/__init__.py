"""How the six files compute quickly: rows packed one after another, logits a chunk at a time, a key-value cache.

Nothing here knows tasks, teachers or runs, and nothing is imported but torch. Each part computes the same as the plain
form that it replaces; the tests hold the two together.
"""
