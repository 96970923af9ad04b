"""Latent diffusion models as others train them, in the layout of diffusers: what several plugins share; no plugin itself."""
