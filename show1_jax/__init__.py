"""Show-1 in JAX: cascaded text-to-video diffusion in pixels and latents."""
