"""transformers' own model tests on attached models. ``.ci/foreign`` runs them; none of them is in this folder."""
