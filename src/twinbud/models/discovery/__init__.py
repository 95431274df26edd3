"""Widths found in a network that nobody described: follow every dimension through a forward pass, prove the result.

``dimensions`` is the algebra of unknown dimensions, ``rules`` says what each tensor operation does to them, ``trace``
runs a network on shapes alone, and ``found`` turns the result into the specs that selection uses, and proves them.
"""
