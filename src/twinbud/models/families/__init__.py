"""Families of timm's networks: what their widths are, and how their layers are refitted; ``registry`` lists them."""
