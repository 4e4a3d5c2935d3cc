"""System-level DPO: a compound AI system is a graph of models, aligned end to end (arXiv 2502.17721)."""
