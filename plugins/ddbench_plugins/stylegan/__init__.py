"""StyleGAN3 and StyleGAN-XL generators as a module: what several generator plugins share; no plugin itself."""
