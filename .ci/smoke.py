"""Asks an installed wheel whether its kernels are live and right: one reduction against the specification."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import ficoco_ext

info = ficoco_ext.build_info()
assert info["cpu"] != "reference", f"the kernels are not loaded: {info}"
generator = torch.Generator().manual_seed(0)
tokens = torch.randn(2, 65, 32, generator=generator)
attn = torch.rand(2, 65, 65, generator=generator)
found = ficoco_ext.reduce(tokens, attn, r=16)
wanted = ficoco_ext.reduce(tokens.double(), attn.double(), r=16)
assert found.shape == (2, 49, 32), found.shape
torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
print(f"ficoco_ext {ficoco_ext.__version__} with torch {torch.__version__}: kernels {info['cpu']}")
