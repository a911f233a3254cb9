"""How the embedded tiny LLaVA is trained."""
